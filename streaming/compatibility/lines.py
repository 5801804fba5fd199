"""Encodings of the line formats: text, whole and fractional numbers."""

from __future__ import annotations

from typing import Any

from streaming.mds.split import _TYPES as _encodings

__all__ = ["is_json_encoded", "is_json_encoding", "is_xsv_encoding", "xsv_decode", "xsv_encode"]


def is_json_encoding(encoding: str) -> bool:
    """Whether JSON lines have it."""
    return encoding in _encodings


def is_json_encoded(encoding: str, value: Any) -> bool:
    """Whether the value is of the encoding's type. KeyError for an unknown one."""
    return isinstance(value, _encodings[encoding])


def is_xsv_encoding(encoding: str) -> bool:
    """Whether lines of separated values have it."""
    return encoding in _encodings


def xsv_encode(encoding: str, value: Any) -> str:
    """The value as text. KeyError for an unknown encoding, AttributeError for a value of another type."""
    expected = _encodings[encoding]
    if not isinstance(value, expected):
        raise AttributeError(f"data should be of type {expected}, but instead, found as {type(value)}")
    return str(value)


def xsv_decode(encoding: str, value: str) -> Any:
    """The value that the text is of. KeyError for an unknown encoding, ValueError for text that is none."""
    return _encodings[encoding](value)


class _Line:
    _name: str

    @classmethod
    def encode(cls, obj: Any) -> str:
        """The value as text."""
        return xsv_encode(cls._name, obj)

    @classmethod
    def decode(cls, obj: str) -> Any:
        """The value that the text is of."""
        return xsv_decode(cls._name, obj)

    @classmethod
    def is_encoded(cls, obj: Any) -> bool:
        """Whether the value is of the type."""
        return is_json_encoded(cls._name, obj)


class Str(_Line):
    """Text."""

    _name = "str"


class Int(_Line):
    """A whole number."""

    _name = "int"


class Float(_Line):
    """A fractional number."""

    _name = "float"
