"""The name of an index."""

from __future__ import annotations

from streaming.compatibility.arguments import get_index_basename

__all__ = [
    "get_index_basename",
]
