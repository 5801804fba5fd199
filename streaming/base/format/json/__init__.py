"""Reading and writing JSON lines."""

from __future__ import annotations

from streaming.compatibility.shards import JSONReader
from streaming.writer import JSONWriter

__all__ = [
    "JSONReader",
    "JSONWriter",
]
