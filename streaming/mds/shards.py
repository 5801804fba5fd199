"""What index.json says about one shard, as values that nobody can change.

A shard of a joint format (mds) is one file; of a split format (json, csv, tsv, xsv) two, data and meta. Each file is
described as it reads (raw) and, where the dataset is compressed, as it is stored (zip).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

__all__ = ["JOINT_FORMATS", "SPLIT_FORMATS", "VERSION", "FileInfo", "Schema", "ShardInfo"]

VERSION = 2
JOINT_FORMATS = frozenset({"mds"})
SPLIT_FORMATS = frozenset({"json", "csv", "tsv", "xsv"})


class FileInfo(NamedTuple):
    """One file of a shard: its path relative to the dataset, its bytes, and hash name to hex digest."""

    basename: str
    bytes: int
    hashes: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """As index.json spells it."""
        return self._asdict()


@dataclass(frozen=True, slots=True)
class Schema:
    """What a sample is made of; one object is shared by all shards that agree on it."""

    format: str
    column_names: tuple[str, ...]
    column_encodings: tuple[str, ...]
    column_sizes: tuple[int | None, ...] | None = None  # mds only: None where the size varies
    newline: str | None = None
    separator: str | None = None  # xsv only: csv and tsv imply theirs

    @property
    def is_split(self) -> bool:
        """Whether a shard is two files, data and meta."""
        return self.format in SPLIT_FORMATS

    def to_json(self) -> dict[str, Any]:
        """The keys that index.json has for this format."""
        if self.format == "json":
            columns = dict(zip(self.column_names, self.column_encodings, strict=True))
            return {"format": "json", "columns": columns, "newline": self.newline}
        keys: dict[str, Any] = {
            "format": self.format,
            "column_names": list(self.column_names),
            "column_encodings": list(self.column_encodings),
        }
        if self.format == "mds":
            keys["column_sizes"] = list(self.column_sizes or ())
        else:
            keys["newline"] = self.newline
        if self.format == "xsv":
            keys["separator"] = self.separator
        return keys


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """One shard as index.json describes it."""

    schema: Schema
    samples: int
    compression: str | None
    hashes: tuple[str, ...]
    size_limit: int | None
    raw_data: FileInfo
    zip_data: FileInfo | None = None
    raw_meta: FileInfo | None = None
    zip_meta: FileInfo | None = None

    @property
    def format(self) -> str:
        return self.schema.format

    @property
    def version(self) -> int:
        return VERSION

    @property
    def column_names(self) -> tuple[str, ...]:
        return self.schema.column_names

    @property
    def column_encodings(self) -> tuple[str, ...]:
        return self.schema.column_encodings

    @property
    def column_sizes(self) -> tuple[int | None, ...] | None:
        return self.schema.column_sizes

    def files(self) -> list[tuple[FileInfo, FileInfo | None]]:
        """(raw, zip) of the data file, then of the meta file where the format has one."""
        pairs = [(self.raw_data, self.zip_data)]
        if self.raw_meta is not None:
            pairs.append((self.raw_meta, self.zip_meta))
        return pairs

    def to_json(self) -> dict[str, Any]:
        """The object that stands in index.json."""
        entry = self.schema.to_json() | {
            "compression": self.compression,
            "hashes": list(self.hashes),
            "raw_data": self.raw_data.to_json(),
            "samples": self.samples,
            "size_limit": self.size_limit,
            "version": VERSION,
            "zip_data": self.zip_data and self.zip_data.to_json(),
        }
        if self.raw_meta is not None:
            entry["raw_meta"] = self.raw_meta.to_json()
            entry["zip_meta"] = self.zip_meta and self.zip_meta.to_json()
        return entry

    def shown(self) -> ShardInfo:
        """The same shard without compression: as its files look when they are shown decompressed."""
        if self.compression is None:
            return self
        return ShardInfo(
            self.schema, self.samples, None, self.hashes, self.size_limit, self.raw_data, None, self.raw_meta, None
        )
