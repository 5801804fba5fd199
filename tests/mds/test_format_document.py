"""FORMAT.md against the code: the names and numbers that it gives."""

from __future__ import annotations

import re
from pathlib import Path

from streaming.mds import encodings, index, seekable
from streaming.mds.encodings import encoding_names
from streaming.mds.hashing import hash_names

TEXT = (Path(index.__file__).parent / "FORMAT.md").read_text()


def section(title: str) -> str:
    """The text under a heading."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE)
    assert found, title
    return found[1]


def first_cells(text: str) -> set[str]:
    """The names in code marks in the first column of a table."""
    rows = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def test_every_encoding_is_in_the_table() -> None:
    """And nothing else is."""
    named = first_cells(section("Encodings"))
    assert {name for name in named if not name.startswith("ndarray:")} == set(encoding_names())
    for name, code in encodings._DTYPE_CODES.items():
        assert f"{code} {name}" in TEXT


def test_every_key_of_the_index_is_in_the_table() -> None:
    """And nothing else is."""
    assert first_cells(section("index.json")) == set().union(*index._KEYS.values())


def test_numbers_are_the_codes() -> None:
    """Magic numbers, limits, and the hashes that are not hashlib's."""
    assert f"0x{seekable._SKIPPABLE:08X}" in TEXT
    assert f"0x{seekable._SEEKABLE:08X}" in TEXT
    assert index.MAX_FILE_BYTES == 2**48
    assert index.MAX_TOTAL_BYTES == 2**62
    assert seekable.DEFAULT_FRAME == 256 << 10
    for name in hash_names():
        assert name in TEXT or not name.startswith("xxh")
