"""MDS encodings: golden bytes, round trips, and a named error for what can't be stored or read."""

from __future__ import annotations

import sys
from decimal import Decimal
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image

from streaming.errors import MissingDependencyError
from streaming.mds import encodings
from streaming.mds.encodings import encoding_names, find_encoding, is_encoding, register_encoding

if TYPE_CHECKING:
    from pathlib import Path

DTYPES = ["uint8", "int8", "uint16", "int16", "float16", "uint32", "int32", "float32", "uint64", "int64", "float64"]
PICTURE = Image.fromarray(np.arange(105, dtype=np.uint8).reshape(5, 7, 3))


def both(name: str, value: Any) -> Any:
    """The value after encoding and decoding, from a view as readers have it."""
    encoding = find_encoding(name)
    data = encoding.encode(value)
    assert encoding.size in (None, len(data))
    return encoding.decode(memoryview(data))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("int", 1, "0100000000000000"),
        ("int", -2, "feffffffffffffff"),
        ("int", True, "0100000000000000"),
        ("str", "hi ž", "686920c5be"),
        ("uint16", 258, "0201"),
        ("float16", 1.5, "003e"),
        ("str_int", 10**20, "313030303030303030303030303030303030303030"),
        ("str_float", 1e300, "31652b333030"),
        ("str_decimal", Decimal("1.10"), "312e3130"),
        ("ndarray", np.arange(3, dtype=np.int16), "110403000001000200"),
        ("ndarray:int16", np.arange(3, dtype=np.int16), "0403000001000200"),
        ("ndarray:int16:3", np.arange(3, dtype=np.int16), "000001000200"),
        ("ndarray", np.zeros((1, 300), np.uint8), "080901002c01" + "00" * 300),
        ("ndarray", np.arange(2, dtype=">i4"), "2104020000000001000000"),
        ("ndarray:int32:2", np.arange(2, dtype=">i4"), "0000000001000000"),
        ("ndarray", np.arange(4, dtype=np.uint8).reshape(2, 2).T, "08080202" + "00020103"),
        ("pil", Image.new("L", (2, 1), 7), "0200000001000000010000004c0707"),
        ("list[pil]", [], "0000000000000000"),
        ("jpeg_array", [b"ab", b"c"], "020000000200000001000000616263"),
        ("json", {"b": "ž", "a": [1.5]}, b'{"b": "\\u017e", "a": [1.5]}'.hex()),
        ("json", np.arange(2), b"[0, 1]".hex()),
    ],
    ids=lambda value: str(value)[:20],
)
def test_golden_bytes(name: str, value: Any, expected: str) -> None:
    """What mosaicml-streaming writes for these values, to the bit; arrays of foreign byte order are swapped."""
    assert find_encoding(name).encode(value).hex() == expected


@given(st.sampled_from(DTYPES).flatmap(lambda name: st.tuples(st.just(name), npst.from_dtype(np.dtype(name)))))
def test_scalars_round_trip_with_their_type(case: tuple[str, Any]) -> None:
    """Every number of every dtype, infinities and NaN included."""
    name, value = case
    out = both(name, value)
    assert type(out) is np.dtype(name).type
    assert out.tobytes() == value.tobytes()


ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda name: npst.arrays(np.dtype(name), npst.array_shapes(min_dims=1, max_dims=5, max_side=4))
)


@given(ARRAYS, st.sampled_from(["", ":dtype", ":dtype:shape"]), st.booleans())
def test_arrays_round_trip(array: np.ndarray[Any, Any], fixed: str, swapped: bool) -> None:
    """Any shape and dtype, however much of it the name fixes, in either byte order, in any memory layout."""
    name = "ndarray" + fixed.replace("dtype", array.dtype.name).replace("shape", ",".join(map(str, array.shape)))
    given_array = np.asfortranarray(array.astype(array.dtype.newbyteorder(">")) if swapped else array)
    out = both(name, given_array)
    assert out.dtype == array.dtype
    assert out.shape == array.shape
    assert out.tobytes() == array.tobytes()
    assert not out.flags.writeable


@given(st.integers(min_value=-(2**63), max_value=2**63 - 1), st.text(), st.binary())
def test_ints_texts_and_bytes_round_trip(number: int, text: str, data: bytes) -> None:
    """The whole range of 64 bits, and any text that UTF-8 can hold."""
    assert both("int", number) == number
    assert type(both("int", number)) is int
    assert both("str_int", number**5) == number**5
    assert both("bytes", data) == data
    if text.isprintable():
        assert both("str", text) == text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("str_float", float("inf")), ("str_decimal", Decimal("1E+5")), ("pkl", {"a": (1, {2})}),
        ("json", [None, True, {"a": 1.5}]), ("json", 7), ("bytes", bytearray(b"ab")), ("bytes", memoryview(b"ab")),
    ],
)  # fmt: skip
def test_other_values_round_trip(name: str, value: Any) -> None:
    """Texts of numbers, pickles, JSON, and what is as good as bytes."""
    assert both(name, value) == value


@pytest.mark.parametrize("name", ["pil", "png"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_pictures_without_loss(name: str, mode: str) -> None:
    """Size, mode and every pixel; lists of them too, empty ones among them."""
    picture = PICTURE.convert(mode)
    out = both(name, picture)
    assert (out.size, out.mode, out.tobytes()) == (picture.size, mode, picture.tobytes())
    assert [item.tobytes() for item in both(f"list[{name}]", [picture, picture])] == [picture.tobytes()] * 2
    assert both(f"list[{name}]", []) == []


def test_a_jpeg_from_a_file_keeps_its_bytes(tmp_path: Path) -> None:
    """Opened from an existing path it is copied; from memory, or when the file is gone, it is encoded."""
    path = tmp_path / "picture.jpg"
    PICTURE.save(path, quality=30)
    jpeg = find_encoding("jpeg")
    with Image.open(path) as picture:
        picture.load()
        assert jpeg.encode(picture) == path.read_bytes()
        path.unlink()
        again = jpeg.encode(picture)
    out = BytesIO()
    PICTURE.save(out, format="JPEG")
    assert jpeg.encode(PICTURE) == out.getvalue()
    assert jpeg.decode(memoryview(again)).size == PICTURE.size
    assert [item.size for item in both("jpeg_array", [again])] == [PICTURE.size]
    assert [item.size for item in both("list[jpeg]", [PICTURE])] == [PICTURE.size]


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("int", np.int64(1), TypeError), ("int", "1", TypeError), ("int", 2**63, OverflowError),
        ("int", 1.0, TypeError),
        ("str", b"x", TypeError), ("str", "\ud800", ValueError), ("bytes", "x", TypeError),
        ("uint8", 256, OverflowError),
        ("uint8", [1, 2], TypeError), ("float32", "no", ValueError), ("str_float", 1, TypeError),
        ("str_int", 1.5, TypeError), ("str_decimal", 1, TypeError), ("ndarray", [1], TypeError),
        ("ndarray", np.array(1), ValueError), ("ndarray", np.zeros((2, 0)), ValueError),
        ("ndarray", np.zeros(2, bool), ValueError), ("ndarray", np.zeros(2, complex), ValueError),
        ("ndarray:int16", np.zeros(2, np.int32), ValueError), ("ndarray:int16:3", np.zeros(2, np.int16), ValueError),
        ("pil", "x", TypeError), ("jpeg", 1, TypeError), ("list[png]", (PICTURE,), TypeError),
        ("jpeg_array", [PICTURE], TypeError), ("json", {1, 2}, TypeError),
    ],
    ids=lambda value: str(value)[:16],
)  # fmt: skip
def test_values_that_cannot_be_stored(name: str, value: Any, error: type[Exception]) -> None:
    """The error says what the encoding wants and what it got."""
    with pytest.raises(error):
        find_encoding(name).encode(value)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("ndarray", b""), ("ndarray", b"\x08"), ("ndarray", b"\x07\x04\x01\x00"), ("ndarray", b"\x08\x00\x01"),
        ("ndarray", b"\x08\x04\x05\x01"), ("ndarray", b"\x08\xff\x01"), ("ndarray:int16", b"\x04\x03\x00"),
        ("ndarray", b"\x08\x0f" + b"\xff" * 24), ("pil", b"\0" * 11), ("pil", b"\xff" * 13), ("str", b"\xff"),
        ("str_int", b"x"), ("json", b"{"), ("jpeg_array", b""), ("jpeg_array", b"\0\0\0\0"),
        ("jpeg_array", b"\xff\xff\xff\xff"), ("jpeg_array", b"\1\0\0\0\5\0\0\0abc"), ("list[pil]", b"\0\0\0\0\1\0\0\0"),
    ],
)  # fmt: skip
def test_bytes_that_are_no_value(name: str, data: bytes) -> None:
    """Hostile bytes are a ValueError, whatever sizes they claim."""
    with pytest.raises(ValueError, match=r"."):
        find_encoding(name).decode(memoryview(data))


@pytest.mark.parametrize(
    "name", ["nope", "", "int:3", "foo:x", "ndarray:", "ndarray::3", "ndarray:complex64", "ndarray:int8:0",
             "ndarray:int8:", "ndarray:int8:-1", "ndarray:int8:2:2", "ndarray:int8:1_0", "Int"],
)  # fmt: skip
def test_unknown_encodings_list_the_known_ones(name: str) -> None:
    """One class of error for every bad name."""
    assert not is_encoding(name)
    with pytest.raises(TypeError, match=r"unknown encoding .*(bytes.*uint8|expected)"):
        find_encoding(name)


def test_own_encodings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registered encoding is known by name; a name is taken once."""
    monkeypatch.setattr(encodings, "_ENCODINGS", dict(encodings._ENCODINGS))

    class Int3:
        size = 3

        def encode(self, obj: int) -> bytes:
            return obj.to_bytes(3, "little")

        def decode(self, data: bytes) -> int:
            return int.from_bytes(data, "little")

    register_encoding("int3", Int3)
    assert "int3" in encoding_names()
    assert find_encoding("int3").decode(find_encoding("int3").encode(70_000)) == 70_000
    for name in ("int3", "int", "a:b", ""):
        with pytest.raises(ValueError, match="expected an encoding name that is free"):
            register_encoding(name, Int3)


def test_missing_pillow_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures say what to install; everything else works without Pillow."""
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'mdsfs\[images\]'"):
        find_encoding("png").decode(b"x")
    assert both("int", 5) == 5
