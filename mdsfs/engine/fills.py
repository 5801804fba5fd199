"""Fills: brings what is absent, once, however many want it. The engine's middle: it knows files, room, jobs and
waiters.

A `bring` looks at what is absent, launches flights over what no flight covers yet, and waits. A flight runs in the
engine's own nursery: whoever waits for it may go away, it goes on. It claims room first; where there is none its
waiters are told so (`crowded out`) and have their bytes sent past the cache. What goes wrong reaches those who lack
bytes of that very flight.

How a file is fetched follows from its form: ranges of raw objects, frames of seekable zstd, else the whole object from
its start. Where nothing may be served below shard level, every form is fetched whole and published at the end.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, NamedTuple

import trio

from mdsfs.plan.calendar import UNKNOWN
from streaming.engine.residency import BLOCK
from streaming.errors import CacheDirectoryError, CacheFullError, DatasetError, StreamingError

from .flights import Flight, Waiter, uncovered
from .forms import Forms
from .framing import MOST_EDGES, Edges, cut_at_frames, frame_run
from .jobs import FramesJob, HashJob, RangeJob, StreamJob
from .policy import Incoming

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .cache import Cache
    from .cachedisk import CacheDisk
    from .dataset import Dataset, FileWork, Run
    from .flights import ByteRange, Landed
    from .framing import Framing
    from .jobs import Job, JobResult
    from .pool import FetcherPool
    from .state import Level

__all__ = ["Fills"]

log = logging.getLogger(__name__)

# Until the object's version is known only one flight of a file may be under way; it should not be a long one.
FIRST_PART = 1 << 20
# Wrong bytes are fetched once more (a proxy, a bad memory on the way); then the file is broken until the engine
# restarts.
REFUSALS = 2
DEMAND, AHEAD = 0, 1
# What no plan asks for, and nobody waits for, may only push out what no plan needs.
AFTER_ALL = UNKNOWN - 1


def _hurry(work: FileWork, first: int, end: int) -> None:
    """Somebody waits for these blocks: flights over them that have not begun go first."""
    for flight in work.flights:
        if flight.covers[0] < end and first < sum(flight.covers):
            flight.demand = True


def _room(work: FileWork, run: Run, blocks: int) -> Run:
    """The run of blocks around a piece that no flight covers."""
    low = max((sum(each.covers) for each in work.flights if sum(each.covers) <= run[0]), default=0)
    end = sum(run)
    high = min((each.covers[0] for each in work.flights if each.covers[0] >= end), default=blocks)
    return low, high - low


class _How(NamedTuple):
    """For whom flights are launched."""

    demand: bool
    distance: int
    landed: Landed | None


class _NoRoomError(Exception):
    """The cache has no room for a flight, and nothing in it may go."""


class Fills:
    """All flights of the engine."""

    def __init__(
        self,
        cache: Cache,
        disk: CacheDisk,
        pool: FetcherPool,
        nursery: trio.Nursery,
        part_size: int,
        *,
        edges: int = MOST_EDGES,
    ) -> None:
        self.cache = cache
        self.disk = disk
        self.pool = pool
        self.forms = Forms(pool)
        self.edges = Edges(edges)
        self.running = 0
        self.failed = 0
        self.refetched = 0
        self.waiting = 0
        self._nursery = nursery
        self._part = max(part_size // BLOCK, 1)
        self.in_flight = 0
        """Blocks of all flights."""
        self._landed = trio.lowlevel.ParkingLot()

    def __repr__(self) -> str:
        return f"Fills({self.running} running, {self.waiting} waiting, {self.failed} failed)"

    # ---- waiting for bytes -------------------------------------------------------------------------------------------

    async def bring(self, dataset: Dataset, file: int, around: Mapping[ByteRange, ByteRange]) -> set[ByteRange]:
        """Return when the ranges are resident, which the caller must hold; the result is those that found no room.

        `around` says, range by range, what to fetch with it. Raises what kept a range from arriving.
        """
        await self.check(dataset, file)
        work = dataset.working(file)
        waiter = Waiter(each for each in around if not dataset.is_resident(file, each[0], each[1] - each[0]))
        work.waiters.append(waiter)
        self.waiting += 1
        try:
            while waiter.pending:
                await self._one_round(dataset, file, waiter, around)
            return waiter.crowded_out
        finally:
            self.waiting -= 1
            work.waiters.remove(waiter)
            dataset.rest(file)

    async def _one_round(
        self, dataset: Dataset, file: int, waiter: Waiter, around: Mapping[ByteRange, ByteRange]
    ) -> None:
        """Launch what is needed and wait until something has changed."""
        await self.forms.find(dataset, file)
        waiter.event = trio.Event()
        waiter.pending -= {each for each in waiter.pending if dataset.is_resident(file, each[0], each[1] - each[0])}
        if not waiter.pending:
            return
        if (error := dataset.working(file).error) is not None:
            raise error
        framed = self.forms.has_frames(dataset, file)
        for each in sorted(waiter.pending):
            # frames bring their own surroundings
            self.launch(dataset, file, *(each if framed else around[each]), demand=True)
        await waiter.event.wait()
        if waiter.error is not None:
            raise waiter.error

    # ---- launching ---------------------------------------------------------------------------------------------------

    def launch(
        self,
        dataset: Dataset,
        file: int,
        start: int,
        stop: int,
        *,
        demand: bool,
        distance: int = AFTER_ALL,
        landed: Landed | None = None,
    ) -> list[Flight]:
        """Flights over what is absent of a byte range and not on its way. The file's form must be known.

        For what nobody waits for, `distance` says what must stay: whatever a plan needs sooner. `landed` hears of the
        end of each flight.
        """
        how = _How(demand=demand, distance=-1 if demand else distance, landed=landed)
        work = dataset.working(file)
        first, end = start // BLOCK, -(-min(stop, dataset.size(file)) // BLOCK)
        if self.forms.has_frames(dataset, file):
            return self._launch_frames(dataset, file, (first, end - first), how)
        whole = self.forms.is_whole(dataset, file)
        if whole:
            first, end = 0, dataset.blocks(file)
        launched: list[Flight] = []
        for run in dataset.missing(file, first, end - first) if not whole else [(first, end - first)]:
            for piece in uncovered(work, run):
                if whole and piece != run:
                    continue  # its one flight is under way
                parts = self._parts(dataset, file, piece, whole=whole)
                launched.extend(self._launch(dataset, file, part, how) for part in parts)
        if demand:
            _hurry(work, first, end)
        return launched

    def _launch_frames(self, dataset: Dataset, file: int, run: Run, how: _How) -> list[Flight]:
        """Flights over the frames that a run of blocks needs, none of which is on its way."""
        work, table = dataset.working(file), self.forms.table(dataset, file)
        launched: list[Flight] = []
        for absent in dataset.missing(file, *run):
            while (piece := next(uncovered(work, absent), None)) is not None:
                piece = cut_at_frames(table, piece, self._part)
                room = _room(work, piece, dataset.blocks(file))
                key = (dataset.number, file)
                framing = frame_run(table, self.edges, key, piece, dataset.size(file), room)
                launched.append(self._launch(dataset, file, framing.run, how, framing=framing))
        if how.demand:
            _hurry(work, run[0], run[0] + run[1])
        return launched

    def _parts(self, dataset: Dataset, file: int, run: Run, *, whole: bool) -> Iterable[Run]:
        if whole:
            yield run
            return
        first, count = run
        if dataset.etag(file) is None and not dataset.working(file).flights:
            small = min(FIRST_PART // BLOCK, count)
            yield first, small
            first, count = first + small, count - small
        while count > 0:
            # by multiples of the part size, so that neighbouring readers cut a shard at the same places
            many = min(count, self._part - first % self._part)
            yield first, many
            first, count = first + many, count - many

    def _launch(self, dataset: Dataset, file: int, run: Run, how: _How, framing: Framing | None = None) -> Flight:
        def arrived(first: int, count: int) -> int:
            return self.cache.commit(dataset, file, first, count)

        visible = not dataset.shard_level
        flight = Flight(
            dataset,
            file,
            run,
            demand=how.demand,
            visible=visible,
            on_arrival=arrived,
            framing=framing,
            distance=how.distance,
            landed=how.landed,
        )
        dataset.working(file).flights.append(flight)
        # What is resident between must not be taken away, or it would be written again without a claim.
        flight.hold = self.cache.hold(dataset, file, *run)
        if self.cache.was_evicted(dataset, file, *run):
            log.info("refetch dataset=%d file=%d range=%d-%d", dataset.number, file, flight.start, flight.stop)
        self.running += 1
        self.in_flight += flight.count
        self._nursery.start_soon(self._fly, flight, name=f"fill {dataset.number}/{file}")
        return flight

    # ---- flying ------------------------------------------------------------------------------------------------------

    async def _fly(self, flight: Flight) -> None:
        error: StreamingError | None = None
        no_room = False
        try:
            await self._clear_way(flight)
            await self._fetch(flight)
        except _NoRoomError:
            no_room = True
        except (CacheFullError, CacheDirectoryError) as problem:
            self.disk.refused(problem)
            no_room = True
        except StreamingError as problem:
            error = problem
        except OSError as problem:
            self.disk.refused(CacheFullError(f"the disk under the cache does not take any more: {problem.strerror}"))
            no_room = True
        else:
            self.disk.worked()
        finally:
            await self._land(flight, error, no_room=no_room)

    async def _clear_way(self, flight: Flight) -> None:
        """Wait until nothing of an earlier life is in the way, and claim the room."""
        dataset, file = flight.dataset, flight.file
        work = dataset.working(file)
        if work.outside or not self.disk.takes(flight.count * BLOCK):
            raise _NoRoomError
        for cell in dataset.cells(file, flight.first, flight.count):
            while cell in work.busy:
                await work.busy[cell].wait()
        absent = flight.count - dataset.residency.count(file, flight.first, flight.count)
        if not await self.cache.reserve(dataset, file, absent, Incoming(-1 if flight.demand else flight.distance)):
            raise _NoRoomError
        flight.reserved = absent

    async def _fetch(self, flight: Flight) -> None:
        """Run the flight's job; wrong bytes are withdrawn and fetched once more."""
        while True:
            try:
                result = await self._run(flight)
            except DatasetError as error:
                self._refuse(flight, error)
                if flight.dataset.working(flight.file).error is not None:
                    raise
                log.warning(
                    "wrong bytes, fetching once more: file=%d %s", flight.file, error, extra={"event": "wrong-bytes"}
                )
                continue
            flight.publish_all()
            for at, data in result.edges:
                self.edges.keep((flight.dataset.number, flight.file), at, data)
            self._settle(flight, result)
            return

    async def _run(self, flight: Flight) -> JobResult:
        dataset, file = flight.dataset, flight.file
        async with self.forms.version(dataset, file) as version:
            job = self._job(flight, version.etag)
            fd = dataset.folder.open_file(file)
            dataset.folder.begin_fill(file)
            try:
                result = await self.pool.run(
                    dataset.url,
                    dataset.remote_options,
                    job,
                    fd,
                    priority=DEMAND if flight.demand else AHEAD,
                    on_extent=flight.wrote,
                    on_etag=version.found,
                )
                version.found(result.etag)
                return result
            finally:
                try:
                    dataset.folder.end_fill(file, fd)
                finally:
                    os.close(fd)

    def _job(self, flight: Flight, etag: str | None) -> Job:
        dataset, file = flight.dataset, flight.file
        tables = dataset.tables
        key, stored, size = tables.key(file), int(tables.files["stored"][file]), dataset.size(file)
        if flight.framing is not None:
            frames, patches = flight.framing.frames, flight.framing.patches
            return FramesJob(key, etag, frames, clip=(flight.start, flight.stop), size=stored, patches=patches)
        if not self.forms.is_whole(dataset, file):
            return RangeJob(key, etag, flight.start, flight.stop, at=flight.start, size=stored)
        return StreamJob(
            key,
            etag,
            stored,
            size,
            tables.compression(file),
            zip_hashes=tables.hashes(file, "zip"),
            raw_hashes=tables.hashes(file, "raw"),
            own_hash=dataset.shard_level,
        )

    def _settle(self, flight: Flight, result: JobResult) -> None:
        """Record what the bytes now are."""
        dataset, file = flight.dataset, flight.file
        if not dataset.is_complete(file):
            dataset.folder.note(file, complete=False, level=self._level(flight, result))
            return
        dataset.folder.note(file, complete=True, level=self._level(flight, result), own_hash=result.own_hash)
        if dataset.folder.is_published and self._fits(dataset):
            dataset.folder.publish(file)

    def _fits(self, dataset: Dataset) -> bool:
        """Whether all of a dataset has room: else its shards must go again, and a published one stays while it is open.

        Our own readers have it open too, and the kernel does not say who has.
        """
        ledger = self.cache.ledger
        return dataset.shown_blocks + ledger.fixed <= ledger.limit

    def _level(self, flight: Flight, result: JobResult) -> Level:
        if result.hashes_ok or (result.own_hash is not None and flight.dataset.shard_level):
            return "shard"
        if self.forms.has_frames(flight.dataset, flight.file):
            return "frame"
        return "transport"

    def _refuse(self, flight: Flight, error: DatasetError) -> None:
        """The bytes are wrong: take back what was published, and give the file up if that happened before."""
        dataset, file = flight.dataset, flight.file
        flight.reserved += self.cache.withdraw(dataset, file, flight.first, flight.count)
        flight.reset()
        self.edges.forget((dataset.number, file))
        work = dataset.working(file)
        work.refused += 1
        self.refetched += 1
        if work.refused >= REFUSALS:
            work.error = error

    async def _land(self, flight: Flight, error: StreamingError | None, *, no_room: bool) -> None:
        """End a flight: tell those it fails, give back what it leaves, and only then let another one take its place."""
        dataset, file = flight.dataset, flight.file
        work = dataset.working(file)
        self.running -= 1
        self.in_flight -= flight.count
        if error is not None:
            self.failed += 1
            told = self.pool.health.is_told(error)
            log.log(
                logging.INFO if told else logging.WARNING,
                "fill failed: dataset=%d file=%d bytes=%d-%d: %s",
                dataset.number,
                file,
                flight.start,
                flight.stop,
                error,
                extra={} if told else {"event": "fill-failed", "subject": dataset.url},
            )
        flight.no_room = no_room
        arrived = flight.frontier if flight.visible else flight.start
        # those who lack a block that only its frames touch wait for it too
        low, high = min(flight.start, flight.covers[0] * BLOCK), max(flight.stop, sum(flight.covers) * BLOCK)
        for waiter in list(work.waiters):
            waiter.ended(arrived, flight.stop, error, no_room=no_room)
        self.cache.unhold(flight.hold)
        try:
            if flight.reserved:
                await self._scrub(flight)
        finally:
            work.flights.remove(flight)
            for waiter in list(work.waiters):
                waiter.ended(low, high, None, no_room=False)
            dataset.rest(file)
            self._landed.unpark_all()
            if flight.landed is not None:
                flight.landed(flight)

    async def _scrub(self, flight: Flight) -> None:
        dataset, file = flight.dataset, flight.file
        if dataset.working(file).refused:
            # Withdrawn blocks may still be copied from by those who were told that they hold them.
            await self.cache.wait_unheld(dataset.cells(file, flight.first, flight.count))
        await self.cache.scrub(dataset, file, flight.first, flight.count, flight.reserved)
        flight.reserved = 0

    async def retire(self, dataset: Dataset, file: int) -> None:
        """What is resident of a file goes as soon as those who hold it let go; nobody is told of it from now on."""
        while (work := dataset.working(file)).flights:  # a record without flights may have been forgotten meanwhile
            await self.wait_landing()
        flight = Flight(dataset, file, (0, dataset.blocks(file)), demand=False, visible=False, on_arrival=lambda *_: 0)
        work.flights.append(flight)
        flight.reserved = self.cache.withdraw(dataset, file, flight.first, flight.count)
        self._nursery.start_soon(self._retire, flight, name=f"retire {dataset.number}/{file}")

    async def _retire(self, flight: Flight) -> None:
        dataset, file = flight.dataset, flight.file
        try:
            await self.cache.wait_unheld(dataset.cells(file, flight.first, flight.count))
            await self.cache.scrub(dataset, file, flight.first, flight.count, flight.reserved)
        finally:
            work = dataset.working(file)
            work.flights.remove(flight)
            for waiter in list(work.waiters):
                waiter.ended(flight.start, flight.stop, None, no_room=False)
            dataset.rest(file)
            self._landed.unpark_all()

    async def wait_landing(self) -> None:
        """Return when a flight has ended."""
        await self._landed.park()

    # ---- what an earlier engine left ---------------------------------------------------------------------------------

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
        fd = dataset.folder.open_file(file)
        try:
            job = HashJob(dataset.size(file), dataset.folder.expected_hashes(file), key=dataset.tables.key(file))
            result = await self.pool.run(dataset.url, dataset.remote_options, job, fd, priority=DEMAND, on_extent=None)
        finally:
            os.close(fd)
        if result.hashes_ok:
            dataset.folder.note(file, complete=True, level="shard")
        return bool(result.hashes_ok)
