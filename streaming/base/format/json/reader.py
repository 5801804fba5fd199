"""Reading JSON lines."""

from __future__ import annotations

from streaming.compatibility.shards import JSONReader

__all__ = [
    "JSONReader",
]
