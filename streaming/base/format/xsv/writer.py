"""Writing lines of separated values."""

from __future__ import annotations

from streaming.writer import CSVWriter, TSVWriter, XSVWriter

__all__ = [
    "CSVWriter",
    "TSVWriter",
    "XSVWriter",
]
