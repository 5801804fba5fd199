"""Memory that processes share by a name: one class."""

from __future__ import annotations

from streaming.compatibility.shared import SharedMemory

__all__ = ["SharedMemory"]
