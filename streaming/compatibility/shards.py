"""One shard of an index by itself, as a sequence of samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streaming.array import Array
from streaming.mds.index import parse_index
from streaming.mds.tables import build_tables, load_tables
from streaming.reader import Shards
from streaming.sources import PlainFolder

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

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
]


class Reader(Array):
    """The samples of one shard in `dirname`/`split`, described by its entry in index.json.

    The shard's files are opened at the first sample, the compressed one where the other is not there. Raises
    IndexFormatError for an entry that breaks the format.
    """

    def __init__(self, dirname: str, split: str | None, obj: dict[str, Any]) -> None:
        self._index = parse_index(json.dumps({"shards": [obj], "version": 2}).encode("ascii"))
        (shard,) = self._index.shards
        self.dirname = dirname
        self.split = split or ""
        self.compression = shard.compression
        self.hashes = list(shard.hashes)
        self.samples = shard.samples
        self.size_limit = shard.size_limit
        self.column_names = list(shard.column_names)
        self.column_encodings = list(shard.column_encodings)
        self.column_sizes = None if shard.column_sizes is None else list(shard.column_sizes)
        self.file_pairs = shard.files()
        self._read: Callable[[int], dict[str, Any]] | None = None

    @classmethod
    def from_json(cls, dirname: str, split: str | None, obj: dict[str, Any]) -> Self:
        """The reader of an entry in index.json."""
        return cls(dirname, split, obj)

    @property
    def size(self) -> int:
        """Samples in the shard."""
        return self.samples

    def __len__(self) -> int:
        """Samples in the shard."""
        return self.samples

    def get_item(self, sample_id: int) -> dict[str, Any]:
        """One sample: column name to value."""
        if self._read is None:
            tables = load_tables(b"".join(build_tables(self._index)))
            self._shards = Shards(PlainFolder(Path(self.dirname, self.split), tables))
            self._read = self._shards.reader()
        return self._read(sample_id)


class JointReader(Reader):
    """A shard that is one file."""


class MDSReader(JointReader):
    """A shard of format mds."""


class SplitReader(Reader):
    """A shard that is a data and a meta file."""


class JSONReader(SplitReader):
    """A shard of format json."""


class XSVReader(SplitReader):
    """A shard of format xsv."""


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


def reader_from_json(dirname: str, split: str | None, obj: dict[str, Any]) -> Reader:
    """The reader of an entry in index.json, by its format."""
    return _READERS.get(obj.get("format", ""), Reader).from_json(dirname, split, obj)
