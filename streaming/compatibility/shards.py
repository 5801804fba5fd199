"""One shard of an index by itself, as a sequence of samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streaming.array import Array
from streaming.cached import EngineFolder
from streaming.first import bring_shard
from streaming.mds.index import parse_index
from streaming.mds.layout import sample_decoder
from streaming.mds.shards import FileInfo, ShardInfo
from streaming.mds.split import line_decoder, separator_of
from streaming.mds.tables import build_tables, load_tables
from streaming.reader import Shards, schema_from_json
from streaming.sources import PlainFolder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from streaming.mds.index import Index
    from streaming.mds.tables import DatasetTables

__all__ = [
    "CSVReader",
    "JSONReader",
    "JointReader",
    "MDSReader",
    "Reader",
    "SplitReader",
    "TSVReader",
    "XSVReader",
    "reader_from_json",
    "reader_of",
]


class Reader(Array):
    """The samples of one shard in `dirname`/`split`, described by its entry in index.json.

    The shard's files are opened at the first sample, the compressed one where the other is not there. Raises
    IndexFormatError for an entry that breaks the format.
    """

    def __init__(self, dirname: str, split: str | None, obj: dict[str, Any]) -> None:
        self._index: Index | None = parse_index(json.dumps({"shards": [obj], "version": 2}).encode("ascii"))
        self._shards: Shards | None = None
        self._number = 0
        self._describe(dirname, split, self._index.shards[0])

    @classmethod
    def of(cls, shards: Shards, number: int, dirname: str, split: str | None) -> Self:
        """A shard of a dataset that is open, read as that reads it."""
        found = cls.__new__(cls)
        found._index, found._shards, found._number = None, shards, number
        found._describe(dirname, split, _described(shards.tables, number))
        return found

    def _describe(self, dirname: str, split: str | None, shard: ShardInfo) -> None:
        self._shard = shard
        self.dirname = dirname
        self.split = split or ""
        self.compression = shard.compression
        self.hashes = list(shard.hashes)
        self.samples = shard.samples
        self.size_limit = shard.size_limit
        self.column_names = list(shard.column_names)
        self.column_encodings = list(shard.column_encodings)
        self.column_sizes = None if shard.column_sizes is None else list(shard.column_sizes)
        self.raw_data, self.zip_data = shard.raw_data, shard.zip_data
        self.file_pairs = shard.files()

    @classmethod
    def from_json(cls, dirname: str, split: str | None, obj: dict[str, Any]) -> Self:
        """The reader of an entry in index.json."""
        return cls(dirname, split, obj)

    @property
    def format(self) -> str:
        """The shard's format."""
        return self._shard.format

    @property
    def size(self) -> int:
        """Samples in the shard."""
        return self.samples

    def __len__(self) -> int:
        """Samples in the shard."""
        return self.samples

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The samples in their order."""
        return map(self.get_item, range(self.samples))

    def get_raw_size(self) -> int:
        """Bytes of the shard's files as they read."""
        return sum(raw.bytes for raw, _ in self.file_pairs)

    def get_zip_size(self) -> int | None:
        """Bytes of the shard's compressed files, None where it has none."""
        stored = [each for _, each in self.file_pairs if each is not None]
        return sum(each.bytes for each in stored) if stored else None

    def get_max_size(self) -> int:
        """Bytes of all files together."""
        return self.get_raw_size() + (self.get_zip_size() or 0)

    def get_persistent_size(self, keep_zip: bool) -> int:
        """Bytes of the files, compressed ones only with `keep_zip`."""
        return self.get_max_size() if keep_zip else self.get_raw_size()

    def validate(self, allow_unsafe_types: bool) -> None:
        """Raises ValueError for columns whose decoding can run code, unless that is allowed."""
        self._opened(allow_unsafe_types).check()

    def get_item(self, sample_id: int) -> dict[str, Any]:
        """One sample: column name to value."""
        return self._opened().sample(self._number, sample_id)

    def get_sample_data(self, idx: int) -> bytes:
        """One sample as it is stored."""
        return self._opened().stored_sample(self._number, idx)

    def decode_sample(self, data: bytes) -> dict[str, Any]:
        """What such bytes mean."""
        schema = self._shard.schema
        is_mds = schema.format == "mds"
        decode = sample_decoder(schema, allow_unsafe_types=True) if is_mds else line_decoder(schema)
        sample: dict[str, Any] = decode(memoryview(data), 0, len(data))
        return sample

    def bring(self) -> int:
        """Have the shard's files in the cache, as far as there is room; bytes of those that were not there."""
        return bring_shard(self._opened(), self._number)

    def is_here(self) -> bool:
        """Whether all of the shard is in the cache; of a folder without one everything is."""
        shards = self._opened()
        row = int(shards.tables.shards["file"][self._number])
        files = range(row, row + len(self.file_pairs))
        return not isinstance(shards.folder, EngineFolder) or all(map(shards.folder.is_here, files))

    def _opened(self, allow_unsafe_types: bool = True) -> Shards:
        if self._shards is not None and allow_unsafe_types:
            return self._shards
        if self._index is None:
            assert self._shards is not None
            return Shards(self._shards.folder, allow_unsafe_types=allow_unsafe_types)
        folder = PlainFolder(Path(self.dirname, self.split), load_tables(b"".join(build_tables(self._index))))
        shards = Shards(folder, allow_unsafe_types=allow_unsafe_types)
        if allow_unsafe_types:
            self._shards = shards
        return shards


def _described(tables: DatasetTables, number: int) -> ShardInfo:
    """What tables still know of a shard's entry: all but its size limit."""
    schema = schema_from_json(tables.schema(number))
    row = int(tables.shards["file"][number])
    (raw, stored), *meta = (_pair(tables, each) for each in range(row, row + 1 + schema.is_split))
    samples, compression = int(tables.shards["samples"][number]), tables.compression(row)
    hashes = tuple(sorted(raw.hashes))
    return ShardInfo(schema, samples, compression, hashes, None, raw, stored, *(meta[0] if meta else ()))


def _pair(tables: DatasetTables, row: int) -> tuple[FileInfo, FileInfo | None]:
    raw = FileInfo(tables.name(row), int(tables.files["size"][row]), tables.hashes(row, "raw"))
    if tables.compression(row) is None:
        return raw, None
    return raw, FileInfo(tables.key(row), int(tables.files["stored"][row]), tables.hashes(row, "zip"))


class JointReader(Reader):
    """A shard that is one file."""


class MDSReader(JointReader):
    """A shard of format mds."""


class SplitReader(Reader):
    """A shard that is a data and a meta file."""

    def _describe(self, dirname: str, split: str | None, shard: ShardInfo) -> None:
        super()._describe(dirname, split, shard)
        self.raw_meta, self.zip_meta = shard.raw_meta, shard.zip_meta
        self.newline = shard.schema.newline


class JSONReader(SplitReader):
    """A shard of format json."""

    @property
    def columns(self) -> dict[str, str]:
        """Column name to encoding."""
        return dict(zip(self.column_names, self.column_encodings, strict=True))


class XSVReader(SplitReader):
    """A shard of format xsv."""

    @property
    def separator(self) -> str:
        """What parts the values of a line."""
        return separator_of(self._shard.schema)


class CSVReader(XSVReader):
    """A shard of format csv."""


class TSVReader(XSVReader):
    """A shard of format tsv."""


_READERS: dict[str, type[Reader]] = {
    "csv": CSVReader,
    "json": JSONReader,
    "mds": MDSReader,
    "tsv": TSVReader,
    "xsv": XSVReader,
}


def reader_of(shards: Shards, number: int, dirname: str, split: str | None) -> Reader:
    """The reader of a shard of an open dataset, by its format."""
    kind = _READERS[str(shards.tables.schema(number)["format"])]
    return kind.of(shards, number, dirname, split)


def reader_from_json(dirname: str, split: str | None, obj: dict[str, Any]) -> Reader:
    """The reader of an entry in index.json, by its format."""
    return _READERS.get(obj.get("format", ""), Reader).from_json(dirname, split, obj)
