"""A dataset that streams."""

from __future__ import annotations

from streaming.dataset import StreamingDataset

__all__ = ["StreamingDataset"]
