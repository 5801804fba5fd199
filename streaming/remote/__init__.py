"""Object stores and directories behind one synchronous, thread-safe interface: keys and bytes, not their meaning."""

from __future__ import annotations

from streaming.remote.interface import Counters, ObjectInfo, RangeReader, Remote
from streaming.remote.options import RemoteOptions
from streaming.remote.sources import open_remote

__all__ = ["Counters", "ObjectInfo", "RangeReader", "Remote", "RemoteOptions", "open_remote"]
