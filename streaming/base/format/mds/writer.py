"""Writing MDS shards."""

from __future__ import annotations

from streaming.writer import MDSWriter

__all__ = [
    "MDSWriter",
]
