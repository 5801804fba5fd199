"""Reading lines of separated values."""

from __future__ import annotations

from streaming.compatibility.shards import CSVReader, TSVReader, XSVReader

__all__ = [
    "CSVReader",
    "TSVReader",
    "XSVReader",
]
