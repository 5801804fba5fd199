"""Compression of values in memory."""

from __future__ import annotations

from streaming.compatibility.codecs import (
    Brotli,
    Bzip2,
    Compression,
    Gzip,
    Snappy,
    Zstandard,
    compress,
    decompress,
    get_compression_extension,
    get_compressions,
    is_compression,
)

__all__ = [
    "Brotli",
    "Bzip2",
    "Compression",
    "Gzip",
    "Snappy",
    "Zstandard",
    "compress",
    "decompress",
    "get_compression_extension",
    "get_compressions",
    "is_compression",
]
