"""In which form a file's object is stored, hence how it can be fetched; and which version of the object it is.

Both may have to be found out by asking the store: a zstd shard may end in a seek table; the version is the ETag of the
first answer. Whoever needs them waits here for whoever asks.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import trio
from cachetools import LRUCache

from streaming.errors import CacheDirectoryError, CacheFullError

from ..fetching.jobs import ProbeJob

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from streaming.mds.seekable import SeekTable

    from ..cache.dataset import Dataset
    from ..cache.ledger import FileKey
    from ..fetching.pool import FetcherPool

__all__ = ["Forms"]

# A table of 256 frames takes some ten kilobytes; one that was dropped costs one small request to get again.
TABLES = 1024


class Forms:
    """What has been found out about the objects of all datasets."""

    def __init__(self, pool: FetcherPool) -> None:
        self._pool = pool
        self._tables: LRUCache[FileKey, SeekTable] = LRUCache(TABLES)
        self._asking: dict[FileKey, trio.Event] = {}
        self._pinning: dict[FileKey, trio.Event] = {}

    def __repr__(self) -> str:
        return f"Forms({len(self._tables)} seek tables, {len(self._asking)} being asked for)"

    # ---- form --------------------------------------------------------------------------------------------------------

    def is_whole(self, dataset: Dataset, file: int) -> bool:
        """Whether the object can only be fetched whole, from its start. Its form must have been found."""
        if dataset.shard_level:
            return True
        compression = dataset.tables.compression(file)
        return compression is not None and (dataset.number, file) not in self._tables

    def has_frames(self, dataset: Dataset, file: int) -> bool:
        """Whether the object is seekable zstd, and fetched by frames."""
        return not dataset.shard_level and (dataset.number, file) in self._tables

    def table(self, dataset: Dataset, file: int) -> SeekTable:
        """The seek table of a file that `has_frames`."""
        return self._tables[dataset.number, file]

    def is_known(self, dataset: Dataset, file: int) -> bool:
        """Whether `find` has nothing to ask."""
        compression = dataset.tables.compression(file)
        if compression is None or dataset.shard_level or dataset.whole_only:
            return True
        return not compression.startswith("zstd") or (dataset.number, file) in self._tables

    async def find(self, dataset: Dataset, file: int) -> None:
        """Find out the form; raises what kept the store from answering."""
        key = (dataset.number, file)
        while not self.is_known(dataset, file):
            if key in self._asking:
                await self._asking[key].wait()
                continue
            self._asking[key] = trio.Event()
            try:
                await self._ask(dataset, file)
            finally:
                self._asking.pop(key).set()

    async def _ask(self, dataset: Dataset, file: int) -> None:
        async with self.version(dataset, file) as version:
            stored = int(dataset.tables.files["stored"][file])
            job = ProbeJob(dataset.tables.key(file), version.etag, stored)
            result = await self._pool.run(dataset.url, dataset.remote_options, job, -1, priority=0, on_extent=None)
            version.found(result.etag)
        if result.seek_table is None:
            # One writer made them all: asking again for each of a hundred thousand shards would cost a request each.
            dataset.whole_only = True
        else:
            self._tables[dataset.number, file] = result.seek_table

    # ---- version -----------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def version(self, dataset: Dataset, file: int) -> AsyncIterator[Version]:
        """The version to ask the store for. Where none is known, one caller at a time asks without, and finds it."""
        key = (dataset.number, file)
        while (etag := dataset.etag(file)) is None and key in self._pinning:
            await self._pinning[key].wait()
        version = Version(dataset, file, etag)
        if etag is None:
            self._pinning[key] = version.known
        try:
            yield version
        finally:
            if self._pinning.get(key) is version.known:
                del self._pinning[key]
            version.known.set()


class Version:
    """The version of one object during one request."""

    __slots__ = ("_dataset", "_file", "etag", "known")

    def __init__(self, dataset: Dataset, file: int, etag: str | None) -> None:
        self._dataset = dataset
        self._file = file
        self.etag = etag
        self.known = trio.Event()
        """Others need not wait any more: the version is recorded, or the request has ended without telling."""

    def found(self, etag: str | None) -> None:
        """What the store answered; pins the object to it."""
        if self.etag is None and etag is not None:
            try:
                self._dataset.folder.note(self._file, etag=etag)
            except (CacheDirectoryError, CacheFullError):
                # A disk that takes no writes; an engine that starts later pins anew.
                self._dataset.unrecorded[self._file] = etag
            self.etag = etag
            self.known.set()
