"""Samples of every encoding, the same in both environments; numpy and Pillow are all that it needs."""

from __future__ import annotations

import json
import random
from decimal import Decimal
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

COMPRESSIONS = [None, "zstd", "zstd:7", "gz", "bz2", "br:5", "snappy"]
HASHES = [[], ["sha1"], ["sha1", "xxh3_64"]]
SIZE_LIMIT = 20_000
COUNT = 24

DTYPES = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)] + ["float16", "float32", "float64"]

COLUMNS = {
    "bytes": "bytes",
    "str": "str",
    "int": "int",
    **{f"scalar_{name}": name for name in DTYPES},
    "str_int": "str_int",
    "str_float": "str_float",
    "str_decimal": "str_decimal",
    "array": "ndarray",
    **{f"array_{name}": f"ndarray:{name}" for name in DTYPES},
    "array_fixed": "ndarray:int16:2,3",
    "pil": "pil",
    "jpeg": "jpeg",
    "jpeg_bytes": "jpeg",
    "png": "png",
    "jpeg_array": "jpeg_array",
    "jpegarray": "jpegarray",
    "list_pil": "list[pil]",
    "list_jpeg": "list[jpeg]",
    "list_png": "list[png]",
    "pkl": "pkl",
    "json": "json",
}

LINE_COLUMNS = {"word": "str", "count": "int", "share": "float"}


def picture(number: int) -> Image.Image:
    """A small picture whose every pixel says which."""
    pixels = np.arange(7 * 5 * 3, dtype=np.uint8).reshape(5, 7, 3) + np.uint8(number)
    return Image.fromarray(pixels)


def jpeg(number: int) -> bytes:
    """The picture as a JPEG file."""
    out = BytesIO()
    picture(number).save(out, format="JPEG", quality=40 + number)
    return out.getvalue()


def scalar(name: str, number: int) -> Any:
    """An extreme value first and last, something between otherwise."""
    kind = np.dtype(name)
    if kind.kind == "f":
        return kind.type([np.finfo(kind).max, np.finfo(kind).min, np.inf, -0.0, number / 7][min(number, 4)])
    return kind.type([np.iinfo(kind).max, np.iinfo(kind).min, number][min(number, 2)])


def sample(number: int) -> dict[str, Any]:
    """Sample of that number, with a value for each of COLUMNS."""
    rng = random.Random(number)
    shape = [(3,), (1, 300), (2, 2, 2), (1, 1, 1, 70_000)][number % 4 if number < 4 else number % 3]
    return {
        "bytes": [b"", b"\0\xff\1", rng.randbytes(500)][number % 3],
        "str": ["", "žluťoučký 🐎", json.dumps({"a": number})][number % 3],
        "int": [2**63 - 1, -(2**63), number][min(number, 2)],
        **{f"scalar_{name}": scalar(name, number) for name in DTYPES},
        "str_int": 10**40 + number,
        "str_float": [float("inf"), 0.1, -1e300][number % 3],
        "str_decimal": [Decimal("1.10"), Decimal("1E+5"), Decimal(number)][number % 3],
        "array": np.arange(np.prod(shape)).reshape(shape).astype(DTYPES[number % len(DTYPES)]),
        **{f"array_{name}": np.array([[scalar(name, number), scalar(name, number + 1)]]) for name in DTYPES},
        "array_fixed": np.arange(6, dtype=np.int16).reshape(2, 3) * number,
        "pil": picture(number).convert(["RGB", "L", "RGBA"][number % 3]),
        "jpeg": picture(number),
        "jpeg_bytes": jpeg(number),
        "png": picture(number),
        "jpeg_array": [jpeg(number), jpeg(number + 1)],
        "jpegarray": [jpeg(number)],
        "list_pil": [picture(at) for at in range(number % 3)],
        "list_jpeg": [picture(at) for at in range(number % 3)],
        "list_png": [picture(at) for at in range(number % 3)],
        "pkl": {"set": (1, number), "none": None},
        "json": {"b": [1, {"c": None}], "a": "ž", "nan": [number / 3]},
    }


def line(number: int) -> dict[str, Any]:
    """Sample of that number, with a value for each of LINE_COLUMNS."""
    return {"word": f"w{number} ž 🐎", "count": number * 10**12 - 5, "share": [0.1, 1e300, -2.0][number % 3]}


def plain(value: Any) -> Any:
    """A decoded value as text that two processes can compare."""
    if isinstance(value, Image.Image):
        return ["picture", value.mode, list(value.size), value.tobytes().hex()]
    if isinstance(value, np.ndarray):
        return ["array", value.dtype.name, list(value.shape), value.tobytes().hex()]
    if isinstance(value, np.generic):
        return ["scalar", value.dtype.name, value.tobytes().hex()]
    if isinstance(value, bytes | memoryview):
        return ["bytes", bytes(value).hex()]
    if isinstance(value, list):
        return ["list", [plain(item) for item in value]]
    return [type(value).__name__, repr(value)]
