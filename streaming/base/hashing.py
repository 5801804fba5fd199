"""Hashes of values in memory."""

from __future__ import annotations

from streaming.compatibility.codecs import get_hash, get_hashes, is_hash

__all__ = [
    "get_hash",
    "get_hashes",
    "is_hash",
]
