"""Reading MDS shards."""

from __future__ import annotations

from streaming.compatibility.shards import MDSReader

__all__ = [
    "MDSReader",
]
