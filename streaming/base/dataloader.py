"""A loader that knows where it is."""

from __future__ import annotations

from streaming.dataloader import StreamingDataLoader

__all__ = ["StreamingDataLoader"]
