"""Which sample stands at each position."""

from __future__ import annotations

from streaming.order import get_shuffle

__all__ = [
    "get_shuffle",
]
