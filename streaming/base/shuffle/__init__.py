"""Which sample stands at each position."""

from __future__ import annotations

from streaming.order import get_shuffle
from streaming.order.shuffles import ALGORITHMS as algos
from streaming.order.shuffles import naive as get_shuffle_naive
from streaming.order.shuffles import py1b as get_shuffle_py1b
from streaming.order.shuffles import py1br as get_shuffle_py1br
from streaming.order.shuffles import py1e as get_shuffle_py1e
from streaming.order.shuffles import py1s as get_shuffle_py1s
from streaming.order.shuffles import py2s as get_shuffle_py2s

__all__ = [
    "algos",
    "get_shuffle",
    "get_shuffle_naive",
    "get_shuffle_py1b",
    "get_shuffle_py1br",
    "get_shuffle_py1e",
    "get_shuffle_py1s",
    "get_shuffle_py2s",
]
