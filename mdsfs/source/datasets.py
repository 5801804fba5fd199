"""Which datasets lie under a URL: the one at its root, and those in folders below it, as their indexes describe them.

Works without an engine, for commands that read a source as a whole. Where the store does not let us list, the root's
dataset is all that there is.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mdsfs.engine.sources.listing import INDEX, index_prefixes
from streaming.errors import (
    BucketMissingError,
    DatasetError,
    EndpointUnreachableError,
    IndexFormatError,
    RemoteError,
    SourceMissingError,
)
from streaming.mds.index import MAX_INDEX_BYTES, Index, parse_index

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streaming.mds.shards import FileInfo, ShardInfo
    from streaming.remote import ObjectInfo, Remote

__all__ = ["Found", "FoundDataset", "find_datasets", "list_objects", "renamed"]


@dataclass(frozen=True, slots=True)
class FoundDataset:
    """One dataset: its folder below the source ('' for the root), its index, and the index's bytes."""

    prefix: str
    index: Index
    data: bytes

    @property
    def key(self) -> str:
        """Where its index stands."""
        return f"{self.prefix}/{INDEX}" if self.prefix else INDEX

    def shards(self) -> Iterator[ShardInfo]:
        """Its shards with their files' keys below the source in place of their names below the dataset."""
        if not self.prefix:
            return iter(self.index.shards)
        return (renamed(shard, lambda name: f"{self.prefix}/{name}") for shard in self.index.shards)


@dataclass(frozen=True, slots=True)
class Found:
    """What lies under a URL. `objects` is the listing by key, None where the store does not list."""

    datasets: tuple[FoundDataset, ...]
    objects: dict[str, ObjectInfo] | None
    warnings: tuple[str, ...]


def find_datasets(remote: Remote) -> Found:
    """The datasets under a remote, those above before those below.

    Raises SourceMissingError where there is none, IndexFormatError for an index at the root that breaks its format;
    one in a folder may be some other program's file: it is passed over with a warning.
    """
    warnings: list[str] = []
    try:
        objects = {info.key: info for info in remote.list()}
    except (EndpointUnreachableError, BucketMissingError):
        raise
    except RemoteError as error:
        if isinstance(error, SourceMissingError):
            raise
        root = _read(remote, "")
        return Found((root,), None, (f"cannot list {remote.url}, only its {INDEX} is looked at: {error}",))
    found = []
    for prefix in index_prefixes(objects):
        try:
            found.append(_read(remote, prefix))
        except DatasetError as error:
            if not prefix:
                raise
            warnings.append(f"{prefix}/{INDEX} is passed over, since it is no dataset's: {error}")
    if not found:
        raise SourceMissingError(f"there is no {INDEX} under {remote.url}: check the bucket and the prefix")
    return Found(tuple(found), objects, tuple(warnings))


def _read(remote: Remote, prefix: str) -> FoundDataset:
    key = f"{prefix}/{INDEX}" if prefix else INDEX
    data, _ = remote.read(key, limit=MAX_INDEX_BYTES)
    try:
        return FoundDataset(prefix, parse_index(data), data)
    except IndexFormatError as error:
        raise IndexFormatError(f"{remote.url.rstrip('/')}/{key}: {error}") from error


def list_objects(remote: Remote) -> dict[str, ObjectInfo]:
    """What is there by key, for a place that may not exist yet; a bucket must."""
    try:
        return {info.key: info for info in remote.list()}
    except BucketMissingError:
        raise
    except SourceMissingError:
        return {}


def renamed(shard: ShardInfo, name: Callable[[str], str]) -> ShardInfo:
    """The same shard with other names of its files."""

    def of(file: FileInfo | None) -> FileInfo | None:
        return file and file._replace(basename=name(file.basename))

    raw_data = shard.raw_data._replace(basename=name(shard.raw_data.basename))
    return dataclasses.replace(
        shard,
        raw_data=raw_data,
        zip_data=of(shard.zip_data),
        raw_meta=of(shard.raw_meta),
        zip_meta=of(shard.zip_meta),
    )
