"""Indexing by more than an integer."""

from __future__ import annotations

from streaming.array import Array

__all__ = [
    "Array",
]
