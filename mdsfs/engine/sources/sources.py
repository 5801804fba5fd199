"""Sources: which datasets are open, for whom, and as whom they are read.

A source is a URL as one client opened it. Clients that name the same URL, with the same identity, share it and its
datasets; another identity is refused as long as somebody has it open, since one cache can't tell two readers' rights
apart. What a source consists of is found by the indexer, a child process, and stands in dataset folders afterwards,
which later engines find again.
"""

from __future__ import annotations

import contextlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from streaming.engine.residency import BLOCK, ResidencyWriter
from streaming.errors import CacheDirectoryError, CacheLimitError, EngineError, EngineRefusedError
from streaming.remote import RemoteOptions, open_remote

from ..cache.dataset import Dataset
from ..cache.pinning import fit_pins
from ..options import LEAST_DATA
from .catalog import index_source

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from ..cache.cache import Cache
    from ..filling.ahead import Ahead
    from ..filling.fills import Fills
    from ..store.directory import CacheStore
    from ..store.folder import DatasetFolder, DatasetInfo

__all__ = ["OpenSource", "Sources"]

log = logging.getLogger(__name__)

# What identities are compared by, in the order in which a refusal shows them.
IDENTITY = ("endpoint", "region", "profile", "anonymous", "payer", "key")
# Directory entries and the like of a new dataset folder.
FOLDER_BLOCKS = 8
# The cache directory, its CACHEDIR.TAG and its VERSION, and a block for the directory to grow by.
ROOT_BLOCKS = 4

Local = "Callable[[str], Path | None] | None"


class _GoneError(Exception):
    """A folder that the indexer found here was idle, and has gone for room meanwhile: it is indexed anew."""


@dataclass(frozen=True, slots=True)
class OpenSource:
    """What one `open` found. Every dataset counts one user more, until `release`."""

    datasets: tuple[Dataset, ...]
    warnings: tuple[str, ...]
    locals: tuple[Callable[[str], Path | None] | None, ...]
    """Per dataset: where an object lies on a local disk; None where the store is elsewhere."""


class Sources:
    """All sources and datasets of the engine."""

    def __init__(self, store: CacheStore, cache: Cache, fills: Fills, ahead: Ahead, *, shard_level: bool) -> None:
        self._store = store
        self._cache = cache
        self._fills = fills
        self._ahead = ahead
        self._shard_level = shard_level
        self._open: dict[tuple[str, bool, str | None], OpenSource] = {}
        self._identities: dict[str, dict[str, Any]] = {}
        self._opening: dict[str, trio.Lock] = {}
        self._by_folder: dict[str, Dataset] = {}
        self._numbers = 0
        cache.on_removed = self._removed

    def __repr__(self) -> str:
        return f"Sources({len(self._identities)} URLs, {len(self._by_folder)} datasets)"

    # ---- at the start -----------------------------------------------------------------------------------------------

    async def take_in(self) -> None:
        """Charge for what earlier engines left here, repair what they were killed in, and come below the limit."""
        self._cache.ledger.set_fixed("the cache directory itself", ROOT_BLOCKS)
        for name in await trio.to_thread.run_sync(self._store.dataset_ids):
            try:
                dataset = await self._load(name, None)
            except CacheDirectoryError as error:
                log.error("a dataset folder cannot be used: %s", error)
                continue
            for file in {*dataset.folder.state.dirty_files(), *dataset.residency.changing()}:
                await self._cache.repair(dataset, file)
        await fit_pins(self._cache)
        if not await self._cache.make_free(0):
            used = self._cache.ledger.used * BLOCK
            raise CacheLimitError(
                f"the cache directory holds {used} bytes that cannot be evicted: give a --cache-limit above that, "
                "or remove the directory"
            )

    async def _load(self, name: str, publish: Path | None) -> Dataset:
        """The dataset of a folder, in memory and in the ledger."""
        while (dataset := self._by_folder.get(name)) is not None:
            if dataset.removed is None:
                return dataset
            await dataset.removed.wait()
        folder = self._store.folder(name, publish=publish)
        sizes = folder.tables.files["size"]
        try:
            residency = ResidencyWriter.open(folder.residency_path, sizes)
        except EngineError:
            # of another version, or cut off: what is in the files cannot be told any more
            await trio.to_thread.run_sync(folder.wipe)
            folder.residency_path.unlink()
            residency = ResidencyWriter.open(folder.residency_path, sizes)
        _take_back(folder, residency)
        self._numbers += 1
        info = folder.info
        url = f"{info.url.rstrip('/')}/{info.prefix}" if info.prefix else info.url
        dataset = Dataset(self._numbers, folder, folder.tables, residency, self._cache.chunk, url)
        self._cache.add(dataset, -(-folder.metadata_bytes() // BLOCK))
        self._by_folder[name] = dataset
        return dataset

    def _removed(self, dataset: Dataset) -> None:
        del self._by_folder[dataset.folder.id]
        self._store.forget(dataset.folder.id)

    # ---- opening and releasing --------------------------------------------------------------------------------------

    async def open(
        self, url: str, identity: dict[str, Any], *, listing: bool, shard_level: bool, publish: str | None
    ) -> OpenSource:
        """The datasets of a URL, each with one user more. Raises what keeps it from being read."""
        url = url.rstrip("/") or url
        self._check_identity(url, identity)
        async with self._alone(url):
            self._check_identity(url, identity)
            key = (url, listing, publish)
            found = self._open.get(key) or (None if listing else self._shared(url, identity, publish))
            if found is None:
                found = await self._find(url, identity, listing=listing, publish=publish)
            else:
                for dataset in found.datasets:
                    dataset.users += 1
            try:
                await self._admit(found, shard_level=shard_level or self._shard_level)
            except BaseException:
                for dataset in found.datasets:
                    self.release(dataset)
                raise
            self._open[key] = found
            self._identities[url] = identity
            return found

    def _shared(self, url: str, identity: dict[str, Any], publish: str | None) -> OpenSource | None:
        """The dataset at this very URL, where a source that is open has it: what a mount shows needs no indexing."""
        for (its_url, _, its_publish), source in self._open.items():
            if its_publish != publish or not _same(self._identities[its_url], identity):
                continue
            for dataset, local in zip(source.datasets, source.locals, strict=True):
                if dataset.folder.info.kind == "mds" and dataset.url.rstrip("/") == url:
                    return OpenSource((dataset,), (), (local,))
        return None

    def release(self, dataset: Dataset) -> None:
        """One user less. Its data stays, until its room is needed."""
        dataset.users -= 1
        if dataset.users:
            return
        self._ahead.forget(dataset)
        for key, source in list(self._open.items()):
            if dataset in source.datasets:
                del self._open[key]
        for url in list(self._identities):
            if not any(key[0] == url for key in self._open):
                del self._identities[url]

    def identity_of(self, dataset: Dataset) -> dict[str, Any]:
        """As whom a dataset is read now, else as whom it was when its folder was made."""
        for (url, _, _), source in self._open.items():
            if dataset in source.datasets:
                return self._identities[url]
        return dataset.folder.info.identity

    @contextlib.asynccontextmanager
    async def _alone(self, url: str) -> AsyncIterator[None]:
        """One `open` of a URL at a time: the second one finds what the first one has indexed."""
        lock = self._opening.setdefault(url, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked():
                self._opening.pop(url, None)

    def _check_identity(self, url: str, identity: dict[str, Any]) -> None:
        known = self._identities.get(url)
        if known is None or _same(known, identity):
            return
        if _same({**known, "key": None}, {**identity, "key": None}) and _present_key(url, identity) == identity["key"]:
            # Not another reader: the credentials on the disk were replaced since, and the fetchers find them there too.
            log.warning("the credentials of %s were replaced", url, extra={"event": "credentials-replaced"})
            self._identities[url] = identity
            return
        raise EngineRefusedError(
            f"{url} is open here as {_shown(known)}, not as {_shown(identity)}: use the same credentials and options, "
            "or another --cache-dir"
        )

    # ---- indexing ---------------------------------------------------------------------------------------------------

    async def _find(self, url: str, identity: dict[str, Any], *, listing: bool, publish: str | None) -> OpenSource:
        """Index the source; its datasets have one user each as soon as they are loaded, so that none is removed."""
        options = RemoteOptions.from_identity(identity)
        claim = f"indexing {url}"
        datasets: list[Dataset] = []
        # while the indexer is at work: finding credentials takes a fetcher as long as it
        await self._fills.pool.prepare(url, options)
        try:
            while True:
                indexed = await index_source(
                    self._store,
                    url,
                    options,
                    identity,
                    listing=listing,
                    publish=Path(publish) if publish else None,
                    make_room=lambda size: self._claim(claim, url, size),
                )
                with contextlib.suppress(_GoneError):
                    for info in indexed.datasets[len(datasets) :]:
                        datasets.append(await self._load_found(info, publish, options))
                        datasets[-1].users += 1
                    break
        except BaseException:
            for dataset in datasets:
                self.release(dataset)
            raise
        finally:
            # What was written is charged by the datasets' own figures now, or has been removed.
            self._cache.ledger.set_fixed(claim, 0)
        return OpenSource(tuple(datasets), indexed.warnings, tuple(_local(each.url, options) for each in datasets))

    async def _claim(self, name: str, url: str, size: int) -> None:
        """Room for what the indexer is about to write."""
        blocks = -(-size // BLOCK) + FOLDER_BLOCKS
        in_use = self._in_use()
        if (in_use + blocks) * BLOCK + LEAST_DATA > self._cache.ledger.limit * BLOCK:
            raise self._too_small(url, in_use + blocks, in_use)
        if not await self._cache.make_free(blocks):
            raise CacheLimitError(f"no room for the index of {url}: everything in the cache is in use, try again later")
        self._cache.ledger.set_fixed(name, blocks)

    async def _load_found(self, info: DatasetInfo, publish: str | None, options: RemoteOptions) -> Dataset:
        folder = Path(publish) / info.prefix if publish else None
        try:
            dataset = await self._load(info.id, folder)
        except CacheDirectoryError:
            if self._store.layout(info.id, publish=folder).folder.exists():
                raise
            raise _GoneError from None
        dataset.remote_options = options
        return dataset

    async def _admit(self, found: OpenSource, *, shard_level: bool) -> None:
        """Whether the limit allows these datasets beside the others in use; raises the figure that it should have."""
        in_use = self._in_use()
        if in_use * BLOCK + LEAST_DATA > self._cache.ledger.limit * BLOCK:
            others = in_use - sum(
                self._cache.fixed_of(each)
                for each in found.datasets
                if each.users == 1 and not self._cache.pins.of(each.number)
            )
            raise self._too_small(found.datasets[0].url, in_use, others)
        if not await self._cache.make_free(0):
            raise CacheLimitError(
                "no room for the index and tables: everything in the cache is in use, try again later"
            )
        if shard_level:
            for dataset in found.datasets:
                await self._require_shard_level(dataset)

    def _in_use(self) -> int:
        """Blocks that index and tables of the datasets in use, or with pins, take."""
        return sum(self._cache.fixed_of(each) for each in self._cache.datasets.values() if self._stays(each))

    def _stays(self, dataset: Dataset) -> bool:
        """Whether a dataset's folder can't go: somebody has it open, or has pinned something of it."""
        return bool(dataset.users or self._cache.pins.of(dataset.number))

    def _too_small(self, url: str, needed: int, others: int) -> CacheLimitError:
        least = needed * BLOCK + LEAST_DATA
        beside = f", {others * BLOCK} of them for other datasets in use" if others else ""
        return CacheLimitError(
            f"a cache limit of {self._cache.ledger.limit * BLOCK} bytes is too small for {url}: index and tables take "
            f"{needed * BLOCK} bytes{beside}, the least is {least}"
        )

    async def _require_shard_level(self, dataset: Dataset) -> None:
        """From now on nothing below shard level is served of this dataset; what is there and is not goes."""
        if dataset.shard_level:
            return
        dataset.shard_level = True
        # a flight that began below shard level may not have brought its first block yet
        flying = [file for file, work in dataset.work.items() if work.flights]
        for file in sorted({*self._cache.ledger.files_with_blocks(dataset.number), *flying}):
            record = dataset.folder.state.get(file)
            if record.level != "shard" or not dataset.is_complete(file):
                await self._fills.retire(dataset, file)


def _take_back(folder: DatasetFolder, residency: ResidencyWriter) -> None:
    """Evictions that an engine was killed in before it took anything: complete files are what they were.

    A reader may have a pin on one, so what has no bit any more must not be punched.
    """
    for file in residency.changing():
        if folder.state.get(file).complete and folder.check_file(file) == "ok":
            residency.set_blocks(file, 0, -(-int(folder.tables.files["size"][file]) // BLOCK))
            residency.end(file)


def _present_key(url: str, identity: dict[str, Any]) -> str | None:
    """The key id (hashed) with which the engine itself would read this source now."""
    key: str | None = RemoteOptions.from_identity(identity).identity(url)["key"]
    return key


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one.get(name) == other.get(name) for name in IDENTITY)


def _local(url: str, options: RemoteOptions) -> Callable[[str], Path | None] | None:
    if "://" in url and not url.startswith("file://"):
        return None
    return open_remote(url, options).local_path


def _shown(identity: dict[str, Any]) -> str:
    return json.dumps({name: identity[name] for name in IDENTITY if identity.get(name) not in (None, False)})
