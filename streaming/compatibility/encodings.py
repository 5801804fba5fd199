"""MDS encodings by name and by class.

`_encodings` is the table that readers and writers look into, so an own encoding put there is known to them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from streaming.mds.encodings import _ENCODINGS, UNSAFE, _NDArray, encoding_names, find_encoding, is_encoding

__all__ = [
    "get_mds_encoded_size",
    "get_mds_encodings",
    "is_mds_encoding",
    "is_mds_encoding_safe",
    "mds_decode",
    "mds_encode",
]

_encodings = _ENCODINGS


class Encoding(ABC):
    """Base of own encodings."""

    size: int | None = None  # bytes of every value, None where that varies

    @abstractmethod
    def encode(self, obj: Any) -> bytes:
        """The bytes to be stored."""

    @abstractmethod
    def decode(self, data: bytes) -> Any:
        """The value that the bytes are of."""

    @staticmethod
    def _validate(data: Any, expected_type: Any) -> None:
        if not isinstance(data, expected_type):
            raise AttributeError(f"data should be of type {expected_type}, but instead, found as {type(data)}")


def _named(encoding: str) -> type[Any]:
    """The class of an encoding without parameters, whose constructor takes none."""
    made = find_encoding(encoding)

    class Named(type(made)):  # type: ignore[misc]  # its base is only known here
        def __init__(self) -> None:
            self.__dict__.update(vars(made))

    return Named


NDArray = _NDArray  # takes dtype and shape
Bytes, Str, Int, Pickle, JSON = map(_named, ("bytes", "str", "int", "pkl", "json"))
UInt8, UInt16, UInt32, UInt64 = map(_named, ("uint8", "uint16", "uint32", "uint64"))
Int8, Int16, Int32, Int64 = map(_named, ("int8", "int16", "int32", "int64"))
Float16, Float32, Float64 = map(_named, ("float16", "float32", "float64"))
StrInt, StrFloat, StrDecimal = map(_named, ("str_int", "str_float", "str_decimal"))
PIL, JPEG, PNG, JPEGArray = map(_named, ("pil", "jpeg", "png", "jpeg_array"))
PILList, JPEGList, PNGList = map(_named, ("list[pil]", "list[jpeg]", "list[png]"))


def get_mds_encodings() -> set[str]:
    """Names of encodings, without those that take parameters."""
    return set(encoding_names())


def is_mds_encoding(encoding: str) -> bool:
    """Whether the name is an encoding's, parameters included."""
    return is_encoding(encoding)


def is_mds_encoding_safe(encoding: str) -> bool:
    """Whether decoding can't run code that the data names."""
    return encoding not in UNSAFE


def mds_encode(encoding: str, obj: Any) -> bytes:
    """The bytes to be stored; `bytes` are stored as they are, whatever the encoding. ValueError for an unknown one."""
    return obj if isinstance(obj, bytes) else _find(encoding).encode(obj)


def mds_decode(encoding: str, data: bytes) -> Any:
    """The value that the bytes are of. ValueError for an unknown encoding."""
    return _find(encoding).decode(data)


def get_mds_encoded_size(encoding: str) -> int | None:
    """Bytes of every value, None where that varies. ValueError for an unknown encoding."""
    size: int | None = _find(encoding).size
    return size


def _find(encoding: str) -> Any:
    try:
        return find_encoding(encoding)
    except TypeError as error:
        raise ValueError(f"Unsupported encoding: {encoding}.") from error
