"""Reading and writing lines of separated values."""

from __future__ import annotations

from streaming.compatibility.shards import CSVReader, TSVReader, XSVReader
from streaming.writer import CSVWriter, TSVWriter, XSVWriter

__all__ = [
    "CSVReader",
    "CSVWriter",
    "TSVReader",
    "TSVWriter",
    "XSVReader",
    "XSVWriter",
]
