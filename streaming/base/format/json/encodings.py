"""Encodings of JSON columns."""

from __future__ import annotations

from streaming.compatibility.lines import Float, Int, Str, is_json_encoded, is_json_encoding

__all__ = [
    "Float",
    "Int",
    "Str",
    "is_json_encoded",
    "is_json_encoding",
]
