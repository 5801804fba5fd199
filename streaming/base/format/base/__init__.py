"""What readers have in common."""

from __future__ import annotations

from streaming.compatibility.shards import Reader
from streaming.mds.shards import FileInfo

__all__ = [
    "FileInfo",
    "Reader",
]
