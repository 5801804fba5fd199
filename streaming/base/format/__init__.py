"""Writers and readers of every format."""

from __future__ import annotations

from streaming.compatibility.arguments import get_index_basename
from streaming.compatibility.shards import (
    CSVReader,
    JSONReader,
    MDSReader,
    Reader,
    TSVReader,
    XSVReader,
    reader_from_json,
)
from streaming.mds.shards import FileInfo
from streaming.writer import CSVWriter, JSONWriter, MDSWriter, TSVWriter, XSVWriter

__all__ = [
    "CSVReader",
    "CSVWriter",
    "FileInfo",
    "JSONReader",
    "JSONWriter",
    "MDSReader",
    "MDSWriter",
    "Reader",
    "TSVReader",
    "TSVWriter",
    "XSVReader",
    "XSVWriter",
    "get_index_basename",
    "reader_from_json",
]
