"""Writers and readers of every format."""

from __future__ import annotations

from streaming.compatibility.arguments import get_index_basename
from streaming.compatibility.shards import Reader, reader_from_json
from streaming.mds.shards import FileInfo
from streaming.writer import CSVWriter, JSONWriter, MDSWriter, TSVWriter, XSVWriter

__all__ = [
    "CSVWriter",
    "FileInfo",
    "JSONWriter",
    "MDSWriter",
    "Reader",
    "TSVWriter",
    "XSVWriter",
    "get_index_basename",
    "reader_from_json",
]
