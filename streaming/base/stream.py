"""One source of a dataset."""

from __future__ import annotations

from streaming.stream import Stream

__all__ = ["Stream"]
