"""Past the cache: bytes for which there is no room go into a sealed memfd, and with it to the one who asked.

The memory in flight is bounded: a memfd counts from the moment its bytes are asked for until it has been handed over.
Others wait meanwhile for their turn, which comes as soon as these bytes have been sent, not when the cache has room
again.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from streaming.errors import CacheFullError, DatasetError

from ..fetching.jobs import FramesJob, Job, RangeJob, StreamJob

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..cache.dataset import Dataset
    from ..fetching.pool import FetcherPool
    from .flights import ByteRange
    from .forms import Forms

__all__ = ["MEMORY", "Budget", "Parcel", "Passing"]

log = logging.getLogger(__name__)

# Of all memfds under way; the engine's own memory is small beside it.
MEMORY = 64 << 20
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Budget:
    """An amount that many share, first come, first served."""

    def __init__(self, amount: int) -> None:
        self.amount = amount
        self.free = amount
        self._queue: deque[tuple[int, trio.Event]] = deque()

    def __repr__(self) -> str:
        return f"Budget({self.free} of {self.amount} free, {len(self._queue)} waiting)"

    async def take(self, amount: int) -> None:
        """Wait for one's turn and as much."""
        if not self._queue and amount <= self.free:
            self.free -= amount
            return
        turn = (amount, trio.Event())
        self._queue.append(turn)
        try:
            await turn[1].wait()
        except trio.Cancelled:
            if turn[1].is_set():
                self.give(amount)
            else:
                self._queue.remove(turn)
                self._serve()
            raise

    def give(self, amount: int) -> None:
        """Give back."""
        self.free += amount
        self._serve()

    def _serve(self) -> None:
        while self._queue and self._queue[0][0] <= self.free:
            amount, event = self._queue.popleft()
            self.free -= amount
            event.set()


@dataclass(frozen=True, slots=True)
class Parcel:
    """A memfd on its way to a client. `cost`: what it took of the budget."""

    fd: int
    size: int
    cost: int


class Passing:
    """Fetches past the cache."""

    def __init__(self, pool: FetcherPool, forms: Forms, memory: int = MEMORY) -> None:
        self.budget = Budget(memory)
        self.passed = 0
        """Bytes that went this way."""
        self._pool = pool
        self._forms = forms

    def __repr__(self) -> str:
        return f"Passing({self.budget}, {self.passed} bytes so far)"

    async def fetch(self, dataset: Dataset, crowded: Sequence[tuple[int, Sequence[ByteRange]]]) -> list[Parcel]:
        """One parcel per file: the bytes of its ranges one after another. The caller ends each with `sent`."""
        for file, _ in crowded:
            await self._forms.find(dataset, file)
        hulls = [self._hull(dataset, file, ranges) for file, ranges in crowded]
        sizes = [sum(stop - start for start, stop in ranges) for _, ranges in crowded]
        costs = [size + (hull[1] - hull[0] if hull else 0) for size, hull in zip(sizes, hulls, strict=True)]
        if sum(costs) > self.budget.amount:
            raise CacheFullError(
                f"no room in the cache, and {sum(costs)} bytes are too many to pass by it: ask for less at once, "
                "or raise --cache-limit"
            )
        # All at once: two who each wait for the rest of theirs would wait for ever.
        await self.budget.take(sum(costs))
        parcels: list[Parcel] = []
        try:
            for (file, ranges), hull, size, cost in zip(crowded, hulls, sizes, costs, strict=True):
                parcels.append(Parcel(await self._fetch(dataset, file, ranges, hull, size), size, cost))
        except BaseException:
            for parcel in parcels:
                os.close(parcel.fd)
            self.budget.give(sum(costs))
            raise
        return parcels

    async def _fetch(
        self, dataset: Dataset, file: int, ranges: Sequence[ByteRange], hull: ByteRange | None, size: int
    ) -> int:
        fd = os.memfd_create("mdsfs-passing", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, size)
            if hull:
                await self._fetch_hull(dataset, file, hull, ranges, fd)
            else:
                await self._fetch_each(dataset, file, ranges, fd)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def merge(self, parcels: Sequence[Parcel]) -> Parcel:
        """One memfd instead of several, which a single packet could not carry; takes them over."""
        fd = os.memfd_create("mdsfs-passing", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        size = sum(each.size for each in parcels)
        os.ftruncate(fd, size)
        at = 0
        for each in parcels:
            _copy(each.fd, fd, [(0, each.size)], at)
            at += each.size
            os.close(each.fd)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        return Parcel(fd, size, sum(each.cost for each in parcels))

    def sent(self, parcel: Parcel) -> None:
        """The receiver has it, or is gone: its memory is not ours to count any more."""
        os.close(parcel.fd)
        self.passed += parcel.size
        self.budget.give(parcel.cost)

    def _hull(self, dataset: Dataset, file: int, ranges: Sequence[ByteRange]) -> ByteRange | None:
        """What has to be fetched in one piece first, where the ranges can't be fetched one by one."""
        if dataset.shard_level:
            return 0, dataset.size(file)
        if len(ranges) > 1 and self._forms.is_whole(dataset, file):
            return min(start for start, _ in ranges), max(stop for _, stop in ranges)
        return None

    async def _fetch_each(self, dataset: Dataset, file: int, ranges: Sequence[ByteRange], fd: int) -> None:
        at = 0
        for start, stop in ranges:
            await self._run(dataset, file, (start, stop), fd, at)
            at += stop - start

    async def _fetch_hull(
        self, dataset: Dataset, file: int, hull: ByteRange, ranges: Sequence[ByteRange], fd: int
    ) -> None:
        """One pass over the object into memory, verified where it must be; then the ranges out of that."""
        whole = os.memfd_create("mdsfs-hull", os.MFD_CLOEXEC)
        try:
            await self._run(dataset, file, hull, whole, 0)
            await trio.to_thread.run_sync(_copy, whole, fd, [(a - hull[0], b - hull[0]) for a, b in ranges])
        finally:
            os.close(whole)

    async def _run(self, dataset: Dataset, file: int, span: ByteRange, fd: int, at: int) -> None:
        """One job into a memfd that nobody has seen yet; once more where its bytes are wrong."""
        try:
            await self._run_once(dataset, file, span, fd, at)
        except DatasetError as error:
            log.warning("wrong bytes, fetching once more: file=%d %s", file, error, extra={"event": "wrong-bytes"})
            await self._run_once(dataset, file, span, fd, at)

    async def _run_once(self, dataset: Dataset, file: int, span: ByteRange, fd: int, at: int) -> None:
        async with self._forms.version(dataset, file) as version:
            job = self._job(dataset, file, span, at, version.etag)
            result = await self._pool.run(dataset.url, dataset.remote_options, job, fd, priority=0, on_extent=None)
            version.found(result.etag)

    def _job(self, dataset: Dataset, file: int, span: ByteRange, at: int, etag: str | None) -> Job:
        tables = dataset.tables
        key, stored, size = tables.key(file), int(tables.files["stored"][file]), dataset.size(file)
        start, stop = span
        if dataset.shard_level:
            hashes = {form: tables.hashes(file, form) for form in ("zip", "raw")}
            compression = tables.compression(file)
            return StreamJob(key, etag, stored, size, compression, zip_hashes=hashes["zip"], raw_hashes=hashes["raw"])
        if self._forms.has_frames(dataset, file):
            frames = tuple(self._forms.table(dataset, file).frames_for(start, stop))
            return FramesJob(key, etag, frames, clip=span, at_shift=start - at, size=stored)
        if not self._forms.is_whole(dataset, file):
            return RangeJob(key, etag, start, stop, at=at, size=stored)
        return StreamJob(key, etag, stored, size, tables.compression(file), clip=span)


def _copy(source: int, target: int, ranges: Sequence[ByteRange], at: int = 0) -> None:
    os.lseek(target, at, os.SEEK_SET)
    for start, stop in ranges:
        while start < stop:
            start += os.sendfile(target, source, start, stop - start)
