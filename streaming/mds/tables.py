"""A dataset's metadata as numpy tables in one block of bytes, made once per host and mapped by everybody.

An index of a hundred thousand shards takes seconds and hundreds of megabytes to parse; engine, mount and readers
map what one short-lived process wrote, and share its pages. The bytes never leave the machine.

    magic · length of the header · header (JSON: kind, schemas, compressions, sections) · sections, at multiples of 64
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from streaming.errors import DatasetError
from streaming.mds.hashing import DIGEST_SIZES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from streaming.mds.index import Index
    from streaming.mds.shards import FileInfo, Schema

    Buffer = bytes | bytearray | memoryview

__all__ = [
    "FILE",
    "ROLE_DATA",
    "ROLE_META",
    "ROLE_OBJECT",
    "SHARD",
    "DatasetTables",
    "build_tables",
    "check_ids",
    "load_tables",
    "objects_tables",
    "pack_tables",
]

FILE = np.dtype(
    [
        ("name_at", "<u8"),  # path as shown, relative to the dataset's root, in the blob
        ("name_len", "<u4"),
        ("key_at", "<u8"),  # key of the stored object, relative to the dataset's URL, in the blob
        ("key_len", "<u4"),
        ("size", "<i8"),  # bytes as shown
        ("stored", "<i8"),  # bytes of the stored object
        ("compression", "<i2"),  # which of header['compressions'], -1 none
        ("role", "u1"),
        ("shard", "<i4"),  # -1 for an object that belongs to no shard
        ("mtime", "<i8"),  # ns, 0 unknown
    ]
)
SHARD = np.dtype(
    [("samples", "<i8"), ("schema", "<i4"), ("file", "<i8")]
)  # file: the data file's row; meta is the next one

ROLE_DATA = 0
ROLE_META = 1  # the second file of a shard of a split format
ROLE_OBJECT = 2  # shown as it is

_MAGIC = b"MDSTABL1"
_ALIGN = 64
_BLOCK = 4096  # grain of the residency bitmaps
_ETAG = np.dtype([("at", "<u8"), ("len", "<u4")])


class DatasetTables:
    """Read-only view of one dataset's tables; every array is a view of the buffer it was loaded from."""

    def __init__(self, header: dict[str, Any], sections: dict[str, memoryview]) -> None:
        def table(name: str, dtype: Any) -> NDArray[Any]:
            return np.frombuffer(sections[name], dtype=dtype)

        self.kind: str = header["kind"]
        self.schemas: list[dict[str, Any]] = header["schemas"]
        self.compressions: list[str] = header["compressions"]
        self.files = table("files", FILE)
        self.shards = table("shards", SHARD)
        self.first_sample: NDArray[np.int64] = table("first_sample", "<i8")
        self.bitmap_at: NDArray[np.int64] = table("bitmap_at", "<i8")
        self.blob = sections["blob"]
        self._etags = table("etags", _ETAG)
        self._digests = {
            (form, name): (table(f"has.{form}.{name}", "u1"), sections[f"digests.{form}.{name}"])
            for form, name in header["hashes"]
        }

    def __repr__(self) -> str:
        return (
            f"<DatasetTables {self.kind}: {len(self.files)} files, {len(self.shards)} shards, {self.samples} samples>"
        )

    @property
    def samples(self) -> int:
        """Samples in all shards."""
        return int(self.first_sample[-1])

    def name(self, file: int) -> str:
        """Path of the file as shown, relative to the dataset's root."""
        return self._text(int(self.files["name_at"][file]), int(self.files["name_len"][file]))

    def key(self, file: int) -> str:
        """Key of the stored object, relative to the dataset's URL."""
        return self._text(int(self.files["key_at"][file]), int(self.files["key_len"][file]))

    def names(self) -> Iterator[str]:
        """Every file's path, in the order of the rows: much faster than asking for each."""
        ats, lengths = self.files["name_at"].tolist(), self.files["name_len"].tolist()
        return (self._text(at, length) for at, length in zip(ats, lengths, strict=True))

    def stored_names(self) -> Iterator[str]:
        """Every stored object's key, in the order of the rows."""
        ats, lengths = self.files["key_at"].tolist(), self.files["key_len"].tolist()
        return (self._text(at, length) for at, length in zip(ats, lengths, strict=True))

    def compression(self, file: int) -> str | None:
        """How the stored object is compressed (`zstd:7`), None where it is not."""
        at = int(self.files["compression"][file])
        return None if at < 0 else self.compressions[at]

    def hashes(self, file: int, form: str = "raw") -> dict[str, str]:
        """Hash name to hex digest of the file as shown (`raw`) or of the stored compressed object (`zip`)."""
        found = {}
        for (its_form, name), (present, digests) in self._digests.items():
            if its_form == form and present[file]:
                size = DIGEST_SIZES[name]
                found[name] = digests[file * size : (file + 1) * size].hex()
        return found

    def etag(self, file: int) -> str | None:
        """The ETag that a listing gave for the object; None where none is known."""
        if not len(self._etags) or not self._etags["len"][file]:
            return None
        return self._text(int(self._etags["at"][file]), int(self._etags["len"][file]))

    def schema(self, shard: int) -> dict[str, Any]:
        """What the shard's samples are made of: format, column names, encodings, sizes …"""
        return self.schemas[int(self.shards["schema"][shard])]

    def shard_of_sample(self, ids: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(shard, index within the shard) of each sample id. Raises IndexError for an id that is not there."""
        ids = np.asarray(ids, dtype=np.int64)
        shard = self.find_shards(ids)
        return shard, ids - self.first_sample[shard]

    def find_shards(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The shard of each sample id. Raises IndexError for an id that is not there."""
        check_ids(ids, self.samples)
        # 'right' passes over shards without samples, which share their first sample with their successor
        return self.first_sample.searchsorted(ids, side="right") - 1

    def _text(self, at: int, length: int) -> str:
        return str(self.blob[at : at + length], "utf-8")


def check_ids(ids: NDArray[np.int64], samples: int) -> None:
    """Raise IndexError for an id that none of so many samples has."""
    if ids.size and ids.view(np.uint64).max() >= samples:  # negative ones are huge without their sign
        raise IndexError(f"sample ids: expected 0 to {samples - 1}, got {ids.min()} to {ids.max()}")


# ---- building -------------------------------------------------------------------------------------------------------


class _Rows:
    """Collects the file table column by column, and the texts that it points into."""

    def __init__(self) -> None:
        self._texts: list[bytes] = []
        self._end = 0
        self._columns: tuple[list[int], ...] = tuple([] for _ in FILE.names or ())

    def text(self, text: str) -> tuple[int, int]:
        """Keeps a text; says where it is and how long."""
        data = text.encode()
        at = self._end
        self._texts.append(data)
        self._end += len(data)
        return at, len(data)

    def add(self, name: str, key: str, *rest: int) -> None:
        """One file; `rest` are the columns after the key."""
        key_at, key_len = self.text(key)
        # the stored name of a compressed file is its name plus an extension: one text serves for both
        name_at, name_len = (key_at, len(name.encode())) if key.startswith(name) else self.text(name)
        for column, value in zip(self._columns, (name_at, name_len, key_at, key_len, *rest), strict=True):
            column.append(value)

    def table(self) -> NDArray[Any]:
        files = np.empty(len(self._columns[0]), FILE)
        for name, column in zip(FILE.names or (), self._columns, strict=True):
            files[name] = column
        return files

    def blob(self) -> bytes:
        return b"".join(self._texts)


def build_tables(index: Index) -> list[bytes | memoryview]:
    """The tables of a parsed index, as pieces to be written one after the other."""
    rows = _Rows()
    compressions: dict[str | None, int] = {None: -1}
    schemas: dict[Schema, int] = {}
    shards = np.empty(len(index.shards), SHARD)
    pairs: list[tuple[FileInfo, FileInfo | None]] = []
    columns: tuple[list[int], list[int], list[int]] = ([], [], [])
    for number, shard in enumerate(index.shards):
        compression = compressions.setdefault(shard.compression, len(compressions) - 1)
        for column, value in zip(
            columns, (shard.samples, schemas.setdefault(shard.schema, len(schemas)), len(pairs)), strict=True
        ):
            column.append(value)
        for role, pair in enumerate(shard.files()):
            raw, stored = pair[0], pair[1] or pair[0]
            rows.add(raw.basename, stored.basename, raw.bytes, stored.bytes, compression, role, number, 0)
            pairs.append(pair)
    for name, column in zip(SHARD.names or (), columns, strict=True):
        shards[name] = column
    header = {
        "kind": "mds",
        "schemas": [schema.to_json() for schema in schemas],
        "compressions": [name for name in compressions if name is not None],
    }
    return pack_tables(header, rows.table(), rows.blob(), shards, _digest_sections(pairs))


def objects_tables(objects: Iterable[tuple[str, str, int, int, str | None]]) -> list[bytes | memoryview]:
    """The tables of plain objects, each (path as shown, key, size, mtime in ns, ETag or None)."""
    rows = _Rows()
    etags: list[tuple[int, int]] = []
    for name, key, size, mtime, etag in objects:
        rows.add(name, key, size, size, -1, ROLE_OBJECT, -1, mtime)
        etags.append(rows.text(etag) if etag else (0, 0))
    header = {"kind": "objects", "schemas": [], "compressions": []}
    more: dict[str, NDArray[Any]] = {"etags": np.array(etags, dtype=_ETAG)}
    return pack_tables(header, rows.table(), rows.blob(), np.empty(0, SHARD), more)


def _digest_sections(pairs: Sequence[tuple[FileInfo, FileInfo | None]]) -> dict[str, NDArray[Any]]:
    """Per (form, hash name) one row of digest bytes a file, and which files have one."""
    sections = {}
    for at, form in enumerate(("raw", "zip")):
        digests = [file.hashes if file else {} for file in (pair[at] for pair in pairs)]
        for name in sorted({name for of_file in digests for name in of_file}):
            nothing = "0" * (2 * DIGEST_SIZES[name])
            text = "".join([of_file.get(name, nothing) for of_file in digests])
            sections[f"has.{form}.{name}"] = np.array([name in of_file for of_file in digests], dtype="u1")
            sections[f"digests.{form}.{name}"] = np.frombuffer(bytes.fromhex(text), dtype="u1")
    return sections


def pack_tables(
    header: dict[str, Any], files: NDArray[Any], blob: bytes, shards: NDArray[Any], more: dict[str, NDArray[Any]]
) -> list[bytes | memoryview]:
    """Arrays as the pieces of such a block; `more`: digests, or ETags."""
    first_sample = np.zeros(len(shards) + 1, "<i8")
    np.cumsum(shards["samples"], out=first_sample[1:])
    bitmap_at = np.zeros(len(files) + 1, "<i8")
    words = (files["size"] + (64 * _BLOCK - 1)) // (64 * _BLOCK)  # of 64 blocks each
    np.cumsum(words * 8, out=bitmap_at[1:])
    sections: dict[str, NDArray[Any]] = {
        "files": files,
        "shards": shards,
        "first_sample": first_sample,
        "bitmap_at": bitmap_at,
        "blob": np.frombuffer(blob, "u1"),
        "etags": np.empty(0, _ETAG),
    } | more
    hashes = [name.split(".")[1:] for name in sections if name.startswith("has.")]
    places, at = {}, 0
    for name, section in sections.items():
        places[name] = (at, section.nbytes)
        at += -(-section.nbytes // _ALIGN) * _ALIGN
    text = json.dumps(header | {"hashes": hashes, "sections": places}).encode()
    start = -(-(16 + len(text)) // _ALIGN) * _ALIGN
    pieces: list[bytes | memoryview] = [_MAGIC + len(text).to_bytes(8, "little") + text.ljust(start - 16)]
    for section in sections.values():
        pieces.append(section.data.cast("B") if section.nbytes else b"")
        pieces.append(bytes(-section.nbytes % _ALIGN))
    return pieces


# ---- loading --------------------------------------------------------------------------------------------------------


def load_tables(buffer: Buffer) -> DatasetTables:
    """The tables in a mapped file, without copying. Raises DatasetError where the bytes are not such tables."""
    view = memoryview(buffer).cast("B").toreadonly()
    if view[:8] != _MAGIC or len(view) < 16:
        raise DatasetError(
            "dataset tables: expected a file of this version, got something else: remove it and open again"
        )
    length = int.from_bytes(view[8:16], "little")
    start = -(-(16 + length) // _ALIGN) * _ALIGN
    if start > len(view):
        raise DatasetError(
            f"dataset tables: expected at least {start} bytes, got {len(view)}: remove the file and open again"
        )
    header = json.loads(bytes(view[16 : 16 + length]))
    sections = {}
    for name, (at, size) in header["sections"].items():
        if start + at + size > len(view):
            raise DatasetError(f"dataset tables: truncated in {name}: remove the file and open again")
        sections[name] = view[start + at : start + at + size]
    return DatasetTables(header, sections)
