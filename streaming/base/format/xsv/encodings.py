"""Encodings of columns of separated values."""

from __future__ import annotations

from streaming.compatibility.lines import Float, Int, Str, is_xsv_encoding, xsv_decode, xsv_encode

__all__ = [
    "Float",
    "Int",
    "Str",
    "is_xsv_encoding",
    "xsv_decode",
    "xsv_encode",
]
