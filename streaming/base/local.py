"""A dataset in a folder."""

from __future__ import annotations

from streaming.local import LocalDataset

__all__ = [
    "LocalDataset",
]
