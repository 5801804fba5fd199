"""How many samples an epoch draws from each shard."""

from __future__ import annotations

from streaming.order import get_sampling

__all__ = [
    "get_sampling",
]
