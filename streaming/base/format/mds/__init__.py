"""Reading and writing MDS shards."""

from __future__ import annotations

from streaming.compatibility.shards import MDSReader
from streaming.writer import MDSWriter

__all__ = [
    "MDSReader",
    "MDSWriter",
]
