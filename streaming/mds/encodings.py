"""MDS column encodings: a name like `int` or `ndarray:int16:3`, and the two functions behind it.

Values that are already `bytes` never come here: a writer stores them as they are, whatever the column's encoding.
Decoding takes a view of the shard and, except where `retains` says so, gives a value that does not refer to it.
Pictures need Pillow, which is imported on use. `pkl` runs code that the data names, so readers ask before using it.
"""

from __future__ import annotations

import json
import pickle
import struct
from decimal import Decimal
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from streaming.errors import MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Buffer = bytes | memoryview

__all__ = ["UNSAFE", "Encoding", "encoding_names", "find_encoding", "is_encoding", "register_encoding"]

# Encodings whose decoding can run any code.
UNSAFE = frozenset({"pkl"})


class Encoding(Protocol):
    """One column's encoding."""

    @property
    def size(self) -> int | None:
        """Bytes of every value, None where that varies; a class attribute will do."""

    def encode(self, obj: Any) -> bytes:
        """The bytes to be stored. Raises TypeError or ValueError for a value that can't be."""

    def decode(self, data: Any) -> Any:
        """The value that the bytes are of. Raises ValueError where they are of none."""


class _Encoding:
    size: int | None = None
    retains: ClassVar[bool] = False  # whether decoded values may refer to the data that they were given


def _need(obj: Any, expected: type) -> Any:
    if not isinstance(obj, expected):
        raise TypeError(f"expected {expected.__name__}, got {type(obj).__name__}")
    return obj


class _Bytes(_Encoding):
    retains = True

    def encode(self, obj: bytes | bytearray | memoryview) -> bytes:
        if not isinstance(obj, bytes | bytearray | memoryview):
            raise TypeError(f"expected bytes, got {type(obj).__name__}")
        return bytes(obj)

    def decode(self, data: Buffer) -> Buffer:
        return data


class _Str(_Encoding):
    def encode(self, obj: str) -> bytes:
        return bytes(_need(obj, str).encode())

    def decode(self, data: Buffer) -> str:
        return str(data, "utf-8")


class _Int(_Encoding):
    size = 8
    _word = struct.Struct("<q")

    def encode(self, obj: int) -> bytes:
        try:
            return self._word.pack(_need(obj, int))
        except struct.error:
            raise OverflowError(f"expected an int of 64 bits, got {obj.bit_length() + 1} bits") from None

    def decode(self, data: Buffer) -> int:
        return int(self._word.unpack(data)[0])


class _Scalar(_Encoding):
    def __init__(self, dtype: str) -> None:
        self._type: Callable[[Any], Any] = np.dtype(dtype).type
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self.size = self._dtype.itemsize

    def encode(self, obj: Any) -> bytes:
        scalar = self._type(obj)  # numpy's own rules decide what fits
        if getattr(scalar, "shape", None) != ():
            raise TypeError(f"expected one number, got {type(obj).__name__} of shape {scalar.shape}")
        return bytes(scalar.tobytes())

    def decode(self, data: Buffer) -> Any:
        return np.frombuffer(data, self._dtype)[0]


class _NumberText(_Encoding):
    """A number of any precision as the text that Python writes for it."""

    def __init__(self, kind: type) -> None:
        self._kind = kind

    def encode(self, obj: Any) -> bytes:
        return str(_need(obj, self._kind)).encode()

    def decode(self, data: Buffer) -> Any:
        return self._kind(str(data, "utf-8"))


_DTYPE_CODES = {
    "uint8": 8,
    "int8": 9,
    "uint16": 16,
    "int16": 17,
    "float16": 18,
    "uint32": 32,
    "int32": 33,
    "float32": 34,
    "uint64": 64,
    "int64": 65,
    "float64": 66,
}
_DTYPES = {code: np.dtype(name).newbyteorder("<") for name, code in _DTYPE_CODES.items()}
_SHAPE_DTYPES = [np.dtype(name) for name in ("<u1", "<u2", "<u4", "<u8")]


class _NDArray(_Encoding):
    """`[dtype: 1] [ndim << 2 | w: 1] [dims: ndim × 2**w] values`; what the name fixes is left out."""

    retains = True

    def __init__(self, dtype: str | None = None, shape: tuple[int, ...] | None = None) -> None:
        self._dtype = dtype
        self._shape = shape
        if dtype is not None and shape is not None:
            self.size = int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize

    @classmethod
    def from_name(cls, config: str) -> _NDArray:
        """The encoding of `ndarray:CONFIG`. Raises ValueError."""
        dtype, *rest = config.split(":")
        if dtype not in _DTYPE_CODES:
            raise ValueError(f"expected one of {', '.join(_DTYPE_CODES)} after ndarray:, got {dtype!r}")
        if not rest:
            return cls(dtype)
        dims = rest[0].split(",")
        if len(rest) > 1 or not all(dim.isascii() and dim.isdigit() and int(dim) > 0 for dim in dims):
            raise ValueError(f"expected dimensions of at least 1 like 2,3 after ndarray:{dtype}:, got {config!r}")
        return cls(dtype, tuple(map(int, dims)))

    def encode(self, obj: Any) -> bytes:
        if not isinstance(obj, np.ndarray | np.generic):
            raise TypeError(f"expected numpy.ndarray, got {type(obj).__name__}")
        code = _DTYPE_CODES.get(obj.dtype.name)
        if code is None:
            raise ValueError(f"expected an array of {', '.join(_DTYPE_CODES)}, got {obj.dtype.name}")
        if self._dtype is not None and obj.dtype.name != self._dtype:
            raise ValueError(f"expected an array of {self._dtype}, got {obj.dtype.name}")
        if not obj.shape or not obj.size:
            raise ValueError(f"expected an array of at least one axis and one element, got shape {obj.shape}")
        head = b"" if self._dtype else bytes([code])
        if self._shape is None:
            head += _shape_bytes(obj.shape)
        elif obj.shape != self._shape:
            raise ValueError(f"expected shape {self._shape}, got {obj.shape}")
        # values are little-endian, whatever the array's own order
        return head + bytes(obj.astype(_DTYPES[code], copy=False).tobytes())

    def decode(self, data: Buffer) -> Any:
        at = 0
        if self._dtype is not None:
            dtype = np.dtype(self._dtype).newbyteorder("<")
        else:
            found = _DTYPES.get(data[0]) if len(data) else None
            if found is None:
                raise ValueError(f"expected an array's dtype, got {bytes(data[:1])!r}")
            dtype, at = found, 1
        shape: Sequence[int] | None = self._shape
        if shape is None:
            shape, at = _read_shape(data, at)
        return np.frombuffer(data, dtype, offset=at).reshape(shape)


def _shape_bytes(shape: tuple[int, ...]) -> bytes:
    if len(shape) > 63:
        raise ValueError(f"expected at most 63 axes, got {len(shape)}")
    width = next(w for w in range(4) if max(shape) < 1 << (8 << w))
    return bytes([len(shape) << 2 | width]) + np.array(shape, _SHAPE_DTYPES[width]).tobytes()


def _read_shape(data: Buffer, at: int) -> tuple[list[int], int]:
    if at >= len(data):
        raise ValueError("expected an array's shape, got the end of the value")
    ndim, dtype = data[at] >> 2, _SHAPE_DTYPES[data[at] & 3]
    stop = at + 1 + ndim * dtype.itemsize
    if not ndim or stop > len(data):
        raise ValueError(f"expected {ndim or 'at least one'} dimensions, got {len(data) - at - 1} bytes")
    return np.frombuffer(data[at + 1 : stop], dtype).tolist(), stop


class _Pickle(_Encoding):
    def encode(self, obj: Any) -> bytes:
        return pickle.dumps(obj)

    def decode(self, data: Buffer) -> Any:
        return pickle.loads(data)


class _JSON(_Encoding):
    def encode(self, obj: Any) -> bytes:
        return json.dumps(obj.tolist() if isinstance(obj, np.ndarray) else obj).encode("ascii")

    def decode(self, data: Buffer) -> Any:
        return json.loads(str(data, "utf-8"))


# ---- pictures --------------------------------------------------------------------------------------------------------


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependencyError("picture columns need Pillow: pip install 'mdsfs[images]'") from error
    return Image


# Even a picture without pixels costs Pillow a pointer for each of its lines.
_LARGEST_SIDE = 1 << 24


class _PIL(_Encoding):
    """`u32 width, u32 height, u32 len(mode), mode, pixels`."""

    _head = struct.Struct("<III")

    def encode(self, obj: Any) -> bytes:
        _need(obj, _pillow().Image)
        mode = obj.mode.encode()
        return self._head.pack(*obj.size, len(mode)) + bytes(mode) + bytes(obj.tobytes())

    def decode(self, data: Buffer) -> Any:
        if len(data) < self._head.size:
            raise ValueError(f"expected a picture of at least {self._head.size} bytes, got {len(data)}")
        width, height, mode_len = self._head.unpack_from(data)
        pixels = self._head.size + mode_len
        # Pillow makes room for the picture before it looks at the bytes: at least a bit a pixel must be there for it
        if width * height > 8 * max(len(data) - pixels, 0) or max(width, height) > _LARGEST_SIDE:
            raise ValueError(f"expected the pixels of {width} × {height}, got {len(data) - pixels} bytes")
        return _pillow().frombytes(str(data[self._head.size : pixels], "utf-8"), (width, height), bytes(data[pixels:]))


class _PictureFile(_Encoding):
    def __init__(self, kind: str) -> None:
        self._kind = kind

    def encode(self, obj: Any) -> bytes:
        _need(obj, _pillow().Image)
        if self._kind == "JPEG" and obj.format == "JPEG" and getattr(obj, "filename", ""):
            # a JPEG that was opened from a file keeps its bytes: encoding it again would lose quality
            try:
                with open(obj.filename, "rb") as file:
                    return file.read()
            except FileNotFoundError:
                pass
        out = BytesIO()
        obj.save(out, format=self._kind)
        return out.getvalue()

    def decode(self, data: Buffer) -> Any:
        return _pillow().open(BytesIO(data))


class _Pictures(_Encoding):
    """`u32 0, u32 n, u32 size[n], values`."""

    _reserved = struct.pack("<I", 0)

    def __init__(self, each: Encoding) -> None:
        self._each = each

    def encode(self, obj: list[Any]) -> bytes:
        return self._reserved + _counted([self._each.encode(item) for item in _need(obj, list)])

    def decode(self, data: Buffer) -> list[Any]:
        return [self._each.decode(item) for item in _uncounted(data[len(self._reserved) :])]


class _JPEGArray(_Encoding):
    """`u32 n, u32 size[n], files`: goes in as JPEG bytes, comes out as pictures."""

    _jpeg = _PictureFile("JPEG")

    def encode(self, obj: Sequence[bytes]) -> bytes:
        if not all(isinstance(item, bytes | bytearray) for item in obj):
            raise TypeError("expected a list of the bytes of JPEG files")
        return _counted([bytes(item) for item in obj])

    def decode(self, data: Buffer) -> list[Any]:
        items = _uncounted(data)
        if not items:
            raise ValueError("expected at least one picture, got none")
        return [self._jpeg.decode(item) for item in items]


def _counted(items: list[bytes]) -> bytes:
    return np.array([len(items), *map(len, items)], "<u4").tobytes() + b"".join(items)


def _uncounted(data: Buffer) -> list[Buffer]:
    if len(data) < 4:
        raise ValueError(f"expected a count of 4 bytes, got {len(data)}")
    count = int.from_bytes(data[:4], "little")
    at = 4 + 4 * count
    if at > len(data):
        raise ValueError(f"expected the sizes of {count} values, got {len(data)} bytes")
    items = []
    for size in np.frombuffer(data[4:at], "<u4").tolist():
        items.append(data[at : at + size])
        at += size
    if at != len(data):
        raise ValueError(f"expected values of {at} bytes, got {len(data)}")
    return items


# ---- names -----------------------------------------------------------------------------------------------------------

_ENCODINGS: dict[str, Callable[[], Encoding]] = {
    "bytes": _Bytes,
    "str": _Str,
    "int": _Int,
    "ndarray": _NDArray,
    "str_int": lambda: _NumberText(int),
    "str_float": lambda: _NumberText(float),
    "str_decimal": lambda: _NumberText(Decimal),
    "pil": _PIL,
    "jpeg": lambda: _PictureFile("JPEG"),
    "png": lambda: _PictureFile("PNG"),
    "jpeg_array": _JPEGArray,
    "jpegarray": _JPEGArray,
    "list[pil]": lambda: _Pictures(_PIL()),
    "list[jpeg]": lambda: _Pictures(_PictureFile("JPEG")),
    "list[png]": lambda: _Pictures(_PictureFile("PNG")),
    "pkl": _Pickle,
    "json": _JSON,
}
_ENCODINGS.update((name, partial(_Scalar, name)) for name in _DTYPE_CODES)


def encoding_names() -> list[str]:
    """Every encoding that needs no parameters, sorted; registered ones among them."""
    return sorted(_ENCODINGS)


def register_encoding(name: str, encoding: Callable[[], Encoding]) -> None:
    """Makes an own encoding known by name, to writers and readers of this process. Raises ValueError if it is taken."""
    if not name or ":" in name or name in _ENCODINGS:
        raise ValueError(f"expected an encoding name that is free and without a colon, got {name!r}")
    _ENCODINGS[name] = encoding


def find_encoding(name: str) -> Encoding:
    """The encoding of that name. Raises TypeError listing the known ones."""
    kind, colon, config = name.partition(":")
    if colon and kind == "ndarray":
        try:
            return _NDArray.from_name(config)
        except ValueError as error:
            raise TypeError(f"unknown encoding {name!r}: {error}") from None
    made = None if colon else _ENCODINGS.get(name)
    if made is None:
        raise TypeError(
            f"unknown encoding {name!r}: expected ndarray:DTYPE:SHAPE or one of {', '.join(encoding_names())}"
        )
    return made()


def is_encoding(name: str) -> bool:
    """Whether the name is an encoding's, parameters included."""
    try:
        find_encoding(name)
    except TypeError:
        return False
    return True
