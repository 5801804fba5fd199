"""The order of an epoch."""

from __future__ import annotations

from streaming.compatibility.work import generate_work

__all__ = [
    "generate_work",
]
