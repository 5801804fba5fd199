"""Nodes, ranks and workers."""

from __future__ import annotations

from streaming.order import World

__all__ = [
    "World",
]
