"""Writing JSON lines."""

from __future__ import annotations

from streaming.writer import JSONWriter

__all__ = [
    "JSONWriter",
]
