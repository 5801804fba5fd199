"""Indexes whose shards all look alike, read without an object a shard.

An index of a million shards repeats one text a million times, with other names, sizes, counts and digests in it. The
first shard is parsed strictly; its text becomes a pattern; what the pattern finds in the rest goes into arrays. Each
rule of `index` is checked on the arrays. Whatever does not fit is left to `index`, which says what is wrong with it.
"""

from __future__ import annotations

import json
import re
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from streaming.errors import IndexFormatError
from streaming.mds.hashing import DIGEST_SIZES
from streaming.mds.index import (
    INDEX_NAME,
    MAX_FILE_BYTES,
    MAX_INDEX_BYTES,
    MAX_SHARD_SAMPLES,
    MAX_TOTAL_BYTES,
    VERSION,
    parse_index,
)
from streaming.mds.tables import FILE, ROLE_DATA, SHARD, build_tables, pack_tables

if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from streaming.mds.shards import ShardInfo

    Buffer = bytes | bytearray | mmap.mmap

__all__ = ["UniformIndex", "index_tables"]

_HEAD = re.compile(rb'\s*\{\s*("version"\s*:\s*2\s*,\s*)?"shards"\s*:\s*\[\s*')
_TAIL = re.compile(rb'\s*\](\s*,\s*"version"\s*:\s*2)?\s*\}\s*')
# Up to here the strict way takes milliseconds.
_SMALL = 1 << 16
_FIRST = 1 << 20  # the text of one shard is far shorter
_PIECE = 1 << 14
# Names that need no look at their parts: of no part can it be said that the dataset's folder has it for itself.
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.=@+-]{0,254}"
_NAME = rf"({_PART}(?:/{_PART}){{0,14}})"
_INTEGER = r"(0|[1-9][0-9]{0,14})"
# Stands in a text for the n-th value that varies; no name or number of a dataset looks like it.
_MARK = "\x01\x02{}\x02"


def index_tables(data: Buffer) -> list[bytes | memoryview]:
    """The tables of an index.json, as pieces to be written one after the other. Raises IndexFormatError."""
    found = UniformIndex.read(data) if len(data) > _SMALL else None
    return found.tables() if found is not None else build_tables(parse_index(memoryview(data)))


class UniformIndex:
    """What such an index says, as arrays with a row a shard."""

    def __init__(self, first: ShardInfo, columns: dict[str, Any]) -> None:
        self._first = first
        self._columns = columns
        self.raw_bytes: NDArray[np.int64] = columns["raw.bytes"]
        self.samples: NDArray[np.int64] = columns["samples"]

    def __len__(self) -> int:
        """Shards."""
        return len(self.samples)

    @classmethod
    def read(cls, data: Buffer) -> UniformIndex | None:
        """The index in `data`; None where it is not of this kind, or breaks a rule."""
        head = _HEAD.match(data)
        if head is None or len(data) > MAX_INDEX_BYTES:
            return None
        found = _first_shard(bytes(data[head.end() : head.end() + _FIRST]))
        if found is None:
            return None
        first, entry, text = found
        marks = _marks(entry)
        pattern = _pattern(entry, text, marks)
        if pattern is None:
            return None
        columns = _columns(data, head.end(), *pattern, has_version=head.group(1) is not None)
        return cls(first, columns) if columns is not None and _is_valid(first, columns) else None

    @property
    def is_compressed(self) -> bool:
        """Whether shards are stored compressed."""
        return self._first.compression is not None

    @property
    def stored_bytes(self) -> NDArray[np.int64]:
        """int64 (shards,): bytes of each object as stored."""
        found: NDArray[np.int64] = self._columns.get("zip.bytes", self.raw_bytes)
        return found

    def tables(self) -> list[bytes | memoryview]:
        """What `build_tables` gives for it, byte for byte."""
        first, columns, count = self._first, self._columns, len(self)
        keys = columns["zip.basename" if first.compression else "raw.basename"]
        key_len, name_len = _lengths(keys), _lengths(columns["raw.basename"])
        files = np.zeros(count, FILE)
        files["key_at"] = files["name_at"] = np.cumsum(key_len) - key_len
        files["key_len"], files["name_len"] = key_len, name_len
        files["size"], files["stored"] = self.raw_bytes, self.stored_bytes
        files["compression"] = 0 if first.compression else -1
        files["role"] = ROLE_DATA
        files["shard"] = np.arange(count)
        shards = np.zeros(count, SHARD)
        shards["samples"], shards["file"] = self.samples, np.arange(count)
        header = {
            "kind": "mds",
            "schemas": [first.schema.to_json()],
            "compressions": [first.compression] if first.compression else [],
        }
        digests: dict[str, NDArray[Any]] = {}
        for form in ("raw", "zip") if first.compression else ("raw",):
            for name in sorted(first.hashes):
                digests[f"has.{form}.{name}"] = np.ones(count, "u1")
                digests[f"digests.{form}.{name}"] = columns[f"{form}.{name}"]
        return pack_tables(header, files, _joined(keys), shards, digests)

    def shown(self) -> Iterator[bytes]:
        """What `dump_index` gives for the shards as shown, in pieces."""
        entry = self._first.shown().to_json()
        marks = _marks(entry)
        _put_marks(entry, marks)
        text = json.dumps(entry, sort_keys=True)
        for number, key in enumerate(marks):
            mark = json.dumps(_MARK.format(number))
            text = text.replace(mark, f'"%({key})s"' if not _is_integer(key) else f"%({key})d")
        names = list(marks)
        yield b'{"shards": ['
        for at in range(0, len(self), _PIECE):
            rows = zip(*(_texts(self._columns, name, at) for name in names), strict=True)
            pieces = (text % dict(zip(names, row, strict=True)) for row in rows)
            yield ((", " if at else "") + ", ".join(pieces)).encode("ascii")
        yield f'], "version": {VERSION}}}'.encode("ascii")


def _first_shard(text: bytes) -> tuple[ShardInfo, dict[str, Any], str] | None:
    """The first shard, its JSON object, and its text."""
    try:
        decoded = text.decode("ascii")
        entry, end = json.JSONDecoder().raw_decode(decoded)
        (first,) = parse_index(json.dumps({"shards": [entry], "version": VERSION}).encode("ascii")).shards
    except (ValueError, RecursionError, IndexFormatError):
        return None
    return None if first.format != "mds" else (first, entry, decoded[:end])


def _is_integer(key: str) -> bool:
    return key == "samples" or key.endswith(".bytes")


def _marks(entry: dict[str, Any]) -> dict[str, str]:
    """What varies from shard to shard, by name, and the pattern of its values."""
    marks = {"samples": _INTEGER}
    for form in ("raw", "zip"):
        file = entry[f"{form}_data"]
        if file is not None:
            marks |= {f"{form}.basename": _NAME, f"{form}.bytes": _INTEGER}
            marks |= {f"{form}.{name}": f"([0-9a-f]{{{2 * DIGEST_SIZES[name]}}})" for name in file["hashes"]}
    return marks


def _put_marks(entry: dict[str, Any], marks: dict[str, str]) -> None:
    """Replace the values that vary by marks."""
    for number, key in enumerate(marks):
        form, _, name = key.partition(".")
        place = entry if not name else entry[f"{form}_data"]
        if name and name not in ("basename", "bytes"):
            place = place["hashes"]
        place[name or form] = _MARK.format(number)


def _pattern(entry: dict[str, Any], text: str, marks: dict[str, str]) -> tuple[re.Pattern[bytes], list[str]] | None:
    """The pattern of a shard's text and the names of its groups; None where no JSON writer spells a shard so."""
    for separators in ((", ", ": "), (",", ":")):
        if json.dumps(entry, separators=separators) == text:
            break
    else:
        return None
    _put_marks(entry, marks)
    pattern = re.escape(json.dumps(entry, separators=separators))
    escaped = {key: re.escape(json.dumps(_MARK.format(number))) for number, key in enumerate(marks)}
    names = sorted(marks, key=lambda key: pattern.find(escaped[key]))
    for key, values in marks.items():
        mark = escaped[key]
        if pattern.count(mark) != 1:
            return None
        pattern = pattern.replace(mark, values if _is_integer(key) else f'"{values}"')
    return re.compile(pattern.encode("ascii") + rb"(?:\s*,\s*(?=\{)|(?=\s*\]))"), names


def _columns(
    data: Buffer, at: int, pattern: re.Pattern[bytes], names: list[str], *, has_version: bool
) -> dict[str, Any] | None:
    """Every value that varies, column by column; None where the text is anything but such shards."""
    pieces: list[list[Any]] = [[] for _ in names]
    found = pattern.finditer(data, at)
    while batch := list(islice(found, _PIECE)):
        if batch[0].start() != at or any(a.end() != b.start() for a, b in pairwise(batch)):
            return None
        at = batch[-1].end()
        for column, name, values in zip(
            pieces, names, zip(*[each.groups() for each in batch], strict=True), strict=True
        ):
            column.append(_column(name, values))
    tail = _TAIL.fullmatch(data, at)
    if not pieces[0] or tail is None or (tail.group(1) is not None) == has_version:
        return None
    return {name: np.concatenate(column) for name, column in zip(names, pieces, strict=True)}


def _column(name: str, values: tuple[bytes, ...]) -> NDArray[Any]:
    if name.endswith(".basename"):
        return np.array(values)
    if _is_integer(name):
        return np.array(list(map(int, values)), np.int64)
    return np.frombuffer(bytes.fromhex(b"".join(values).decode("ascii")), np.uint8)


# ---- the rules -------------------------------------------------------------------------------------------------------


def _is_valid(first: ShardInfo, columns: dict[str, Any]) -> bool:
    samples, raw = columns["samples"], columns["raw.bytes"]
    sizes = first.column_sizes or ()
    least = 4 + 4 * (samples + 1) + samples * sum(4 if size is None else size for size in sizes)
    within = samples.max() <= MAX_SHARD_SAMPLES and not (raw < least).any()
    for form in ("raw", "zip"):
        if f"{form}.bytes" in columns:
            within = within and columns[f"{form}.bytes"].max() <= MAX_FILE_BYTES
    # in floating point: the sum itself may not fit
    within = within and raw.sum(dtype=np.float64) <= MAX_TOTAL_BYTES
    names = [columns[key] for key in ("raw.basename", "zip.basename") if key in columns]
    return bool(within) and _fit_together(names) and _share_a_text(names)


def _fit_together(columns: list[NDArray[Any]]) -> bool:
    """Whether all names differ, none is a folder of another, and none is the index's."""
    names = np.sort(np.concatenate(columns))
    if (names[1:] == names[:-1]).any():
        return False
    folders: set[bytes] = set()
    for at in range(0, len(names), _PIECE):
        for name in names[at : at + _PIECE].tolist():
            cut = name.rfind(b"/")
            if name[cut + 1 :] == INDEX_NAME.encode():
                return False
            if cut > 0:
                folders.add(name[:cut])
    for folder in list(folders):
        while (cut := folder.rfind(b"/")) > 0:
            folder = folder[:cut]
            folders.add(folder)
    wanted = np.array(sorted(folders), names.dtype if not folders else None)
    places = np.searchsorted(names, wanted)
    return not (names[np.minimum(places, len(names) - 1)] == wanted).any()


def _share_a_text(columns: list[NDArray[Any]]) -> bool:
    """Whether each stored name is the shown one and more: one text is kept for both."""
    return len(columns) == 1 or bool(np.char.startswith(columns[1], columns[0]).all())


def _lengths(names: NDArray[Any]) -> NDArray[np.int64]:
    return np.char.str_len(names).astype(np.int64)


def _joined(names: NDArray[Any]) -> bytes:
    """All names one after the other."""
    return b"".join(b"".join(names[at : at + _PIECE].tolist()) for at in range(0, len(names), _PIECE))


def _texts(columns: dict[str, Any], name: str, at: int) -> list[Any]:
    """A stretch of a column as it is written."""
    column = columns[name]
    if name.endswith(".basename"):
        return [each.decode("ascii") for each in column[at : at + _PIECE].tolist()]
    if _is_integer(name):
        return list(column[at : at + _PIECE].tolist())
    size = DIGEST_SIZES[name.partition(".")[2]]
    text = column[at * size : (at + _PIECE) * size].tobytes().hex()
    return [text[n : n + 2 * size] for n in range(0, len(text), 2 * size)]
