"""Cache files are hashed: what an earlier engine left before its first use, what came unverified before it is named."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import trio

from streaming.errors import StreamingError

from ..fetching.jobs import HashJob
from ..fetching.pool import AHEAD, DEMAND

if TYPE_CHECKING:
    from ..cache.cache import Cache
    from ..cache.dataset import Dataset
    from ..fetching.jobs import JobResult
    from ..fetching.pool import FetcherPool
    from .framing import Edges

__all__ = ["Checks"]

log = logging.getLogger(__name__)

# How often, and how far apart in seconds, a wrong file is tried to be evicted that readers hold.
TRIES, PAUSE = 60, 0.5


class Checks:
    """See `check` and `verify`."""

    def __init__(self, cache: Cache, pool: FetcherPool, edges: Edges) -> None:
        self.cache, self.pool, self.edges = cache, pool, edges
        self._refused: set[tuple[int, int]] = set()

    async def check(self, dataset: Dataset, file: int) -> None:
        """Before a file's first use in this engine's life: whether what is in it may be served."""
        if dataset.checked[file] and not dataset.folder.is_replaced(file):
            return None
        work = dataset.working(file)
        if dataset.checked[file]:
            if work.flights:
                return None  # what they write is lost with the file; the next one to ask finds that out
            log.warning("cache file was removed or replaced: dataset=%d file=%d", dataset.number, file)
            dataset.checked[file] = 0
            dataset.folder.doubt(file)
        if work.checking is not None:
            await work.checking.wait()
            return await self.check(dataset, file)
        work.checking = trio.Event()
        try:
            await self._check(dataset, file)
            dataset.checked[file] = 1
        finally:
            event, work.checking = work.checking, None
            event.set()
            dataset.rest(file)

    async def verify(self, dataset: Dataset, file: int) -> None:
        """Hash a complete shard that was served as it came, so that it can have its name; a wrong one leaves, once.

        Meanwhile it is read, and may be taken away: then nothing is known of it.
        """
        work, generation = dataset.working(file), dataset.residency.generation(file)
        if work.checking is not None:
            return
        work.checking = trio.Event()
        try:
            result = await self._hashed(dataset, file, AHEAD)
            if not dataset.is_complete(file) or dataset.residency.generation(file) != generation:
                return
            if result.hashes_ok:
                dataset.folder.note(file, complete=True, level="shard")
                dataset.folder.publish(file)
            else:
                await self._refuse(dataset, file)
        except StreamingError as error:
            log.warning("cannot verify dataset=%d file=%d: %s", dataset.number, file, error)
        finally:
            event, work.checking = work.checking, None
            event.set()
            dataset.rest(file)

    async def _refuse(self, dataset: Dataset, file: int) -> None:
        """Wrong bytes are fetched once more; if that does not help, the source has no others, and nobody minds them."""
        log.warning("dataset=%d file=%d has another hash than the index", dataset.number, file)
        if (dataset.number, file) in self._refused:
            return
        self._refused.add((dataset.number, file))
        self.edges.forget((dataset.number, file))
        for _ in range(TRIES):  # whoever has waited for the bytes may still hold them
            if await self.cache.evict_file(dataset, file) is None:
                return
            await trio.sleep(PAUSE)

    async def _check(self, dataset: Dataset, file: int) -> None:
        if not self.cache.ledger.resident_of(dataset.number, file):
            return
        verdict = dataset.folder.check_file(file)
        if verdict == "rehash":
            verdict = "ok" if dataset.is_complete(file) and await self._hash(dataset, file) else "drop"
        if verdict == "drop":
            log.info("dropped dataset=%d file=%d: not what was written into it", dataset.number, file)
            self.edges.forget((dataset.number, file))
            await self.cache.drop(dataset, file)

    async def _hash(self, dataset: Dataset, file: int) -> bool:
        """Whether a complete file has the hash that it should have."""
        result = await self._hashed(dataset, file, DEMAND)
        if result.hashes_ok:
            dataset.folder.note(file, complete=True, level="shard")
        return bool(result.hashes_ok)

    async def _hashed(self, dataset: Dataset, file: int, priority: int) -> JobResult:
        fd = dataset.folder.open_file(file)
        try:
            job = HashJob(dataset.size(file), dataset.folder.expected_hashes(file), key=dataset.tables.key(file))
            options = dataset.remote_options
            return await self.pool.run(dataset.url, options, job, fd, priority=priority, on_extent=None)
        finally:
            os.close(fd)
