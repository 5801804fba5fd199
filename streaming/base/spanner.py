"""From a sample to its shard."""

from __future__ import annotations

from streaming.order import Spanner

__all__ = [
    "Spanner",
]
