"""Which positions of an epoch go where."""

from __future__ import annotations

from streaming.order import get_partitions

__all__ = [
    "get_partitions",
]
