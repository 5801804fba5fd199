"""A flight's life: claims room, has its bytes fetched, makes them resident, and lands, well or not.

A flight runs in the engine's own nursery: whoever waits for it may go away, it goes on. Small flights that nobody waits
for fly together (`grouped`); what one of these does not bring flies again alone, here.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import trio

from streaming.engine.residency import BLOCK
from streaming.errors import CacheDirectoryError, CacheFullError, DatasetError, StreamingError

from ..cache.policy import Incoming
from ..fetching.jobs import FramesJob, RangeJob, StreamJob
from ..fetching.pool import AHEAD, DEMAND
from .flights import Flight

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..cache.cache import Cache
    from ..cache.cachedisk import CacheDisk
    from ..cache.dataset import Dataset, Run
    from ..fetching.jobs import Job, JobResult
    from ..fetching.pool import FetcherPool
    from ..store.state import Level
    from .forms import Forms
    from .framing import Edges

__all__ = ["Flying", "NoRoomError"]

log = logging.getLogger(__name__)

# Wrong bytes are fetched once more (a proxy, a bad memory on the way); then the file is broken until the engine
# restarts.
REFUSALS = 2


class NoRoomError(Exception):
    """The cache has no room for a flight, and nothing in it may go."""


class Flying:
    """All flights that are under way."""

    def __init__(
        self,
        cache: Cache,
        disk: CacheDisk,
        pool: FetcherPool,
        forms: Forms,
        edges: Edges,
        verify: Callable[[Dataset, int], None],
    ) -> None:
        """`verify` has a complete file hashed, without waiting for that."""
        self.cache, self.disk, self.pool, self.forms, self.edges = cache, disk, pool, forms, edges
        self._verify = verify
        self.running = 0
        self.failed = 0
        self.refetched = 0
        self.in_flight = 0
        """Blocks of all flights."""
        self._landed = trio.lowlevel.ParkingLot()

    def __repr__(self) -> str:
        return f"Flying({self.running} flights, {self.failed} failed)"

    def count(self, flight: Flight) -> None:
        """From now on it is under way."""
        self.running += 1
        self.in_flight += flight.count

    async def fly(self, flight: Flight) -> None:
        """The whole of it."""
        error: StreamingError | None = None
        no_room = False
        try:
            await self.clear_way(flight)
            await self._fetch(flight)
        except NoRoomError:
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
            self._give_back(flight)
        finally:
            await self.land(flight, error, no_room=no_room)

    async def clear_way(self, flight: Flight) -> None:
        """Wait until nothing of an earlier life is in the way, and claim the room."""
        dataset, file = flight.dataset, flight.file
        work = dataset.working(file)
        if work.outside or not self.disk.takes(flight.count * BLOCK):
            raise NoRoomError
        for cell in dataset.cells(file, flight.first, flight.count) if work.busy else ():
            while cell in work.busy:
                await work.busy[cell].wait()
        if flight.reserved:
            return  # it has flown together with others, and has its room
        absent = flight.count - dataset.residency.count(file, flight.first, flight.count)
        if not await self.cache.reserve(dataset, file, absent, Incoming(-1 if flight.demand else flight.distance)):
            raise NoRoomError
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
            self.settle(flight, result)
            return

    async def _run(self, flight: Flight) -> JobResult:
        dataset, file = flight.dataset, flight.file
        async with self.forms.version(dataset, file) as version:
            job = self.job(flight, version.etag)
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

    def job(self, flight: Flight, etag: str | None) -> Job:
        """What a fetcher is to do for a flight."""
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

    def settle(self, flight: Flight, result: JobResult) -> None:
        """Record what the bytes now are."""
        dataset, file = flight.dataset, flight.file
        if not dataset.is_complete(file):
            dataset.folder.note(file, complete=False, level=self.level(flight, result))
            return
        dataset.folder.note(file, complete=True, level=self.level(flight, result), own_hash=result.own_hash)
        if dataset.folder.is_published and self._fits(dataset):
            if dataset.folder.is_unverified(file):
                self._verify(dataset, file)
            dataset.folder.publish(file)

    def _fits(self, dataset: Dataset) -> bool:
        """Whether all of a dataset has room: else its shards must go again, and a published one stays while it is open.

        Our own readers have it open too, and the kernel does not say who has.
        """
        ledger = self.cache.ledger
        return dataset.shown_blocks + ledger.fixed <= ledger.limit

    def level(self, flight: Flight, result: JobResult) -> Level:
        """How well what a flight has brought is verified."""
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

    async def land(self, flight: Flight, error: StreamingError | None, *, no_room: bool) -> None:
        """End a flight: tell those it fails, give back what it leaves, and only then let another one take its place."""
        if error is not None:
            self._tell(flight, error)
        if flight.reserved:
            flight.end()
        self._touch_down(flight, error, no_room=no_room)
        try:
            if flight.reserved:
                await self._scrub(flight)
        finally:
            self._leave(flight)

    def land_now(self, flight: Flight) -> None:
        """The same of a flight that has brought everything."""
        self._give_back(flight)
        self._touch_down(flight, None, no_room=False)
        self._leave(flight)

    def _give_back(self, flight: Flight) -> None:
        """Everything is there: claimed is at most what others have brought a part of meanwhile, or had before."""
        if flight.reserved:
            self.cache.ledger.cancel(flight.dataset.number, flight.file, flight.reserved)
            flight.reserved = 0

    def _tell(self, flight: Flight, error: StreamingError) -> None:
        self.failed += 1
        told = self.pool.health.is_told(error)
        log.log(
            logging.INFO if told else logging.WARNING,
            "fill failed: dataset=%d file=%d bytes=%d-%d: %s",
            flight.dataset.number,
            flight.file,
            flight.start,
            flight.stop,
            error,
            extra={} if told else {"event": "fill-failed", "subject": flight.dataset.url},
        )

    def _touch_down(self, flight: Flight, error: StreamingError | None, *, no_room: bool) -> None:
        self.running -= 1
        self.in_flight -= flight.count
        flight.no_room = no_room
        arrived = flight.frontier if flight.visible else flight.start
        for waiter in list(flight.dataset.working(flight.file).waiters):
            waiter.ended(arrived, flight.stop, error, no_room=no_room)
        self.cache.unhold(flight.hold)

    def _leave(self, flight: Flight) -> None:
        dataset, work = flight.dataset, flight.dataset.working(flight.file)
        work.flights.remove(flight)
        # those who lack a block that only its frames touch wait for it too
        low, high = min(flight.start, flight.covers[0]), max(flight.stop, flight.covers[1])
        for waiter in list(work.waiters):
            waiter.ended(low, high, None, no_room=False)
        dataset.rest(flight.file)
        self._landed.unpark_all()
        if flight.landed is not None:
            flight.landed(flight)

    async def _scrub(self, flight: Flight) -> None:
        dataset, file = flight.dataset, flight.file
        if dataset.working(file).refused:
            await self._wait_unheld(flight)
        await self.cache.scrub(dataset, file, self._leavings(flight), flight.reserved)
        flight.reserved = 0

    def _leavings(self, flight: Flight) -> list[Run]:
        """Blocks that a flight may have written into and that hold nothing; not what others are writing into too.

        Those punch them in their turn if they come to nothing. Nobody begins to: this one covers them as a whole.
        """
        dataset, file = flight.dataset, flight.file
        others = [each for each in dataset.working(file).flights if each is not flight and not each.ended]
        runs: list[Run] = []
        for first, count in dataset.vacant(file, flight.first, flight.count):
            for block in range(first, first + count):
                if any(each.first <= block < each.first + each.count for each in others):
                    continue
                if runs and sum(runs[-1]) == block:
                    runs[-1] = runs[-1][0], runs[-1][1] + 1
                else:
                    runs.append((block, 1))
        return runs

    async def _wait_unheld(self, flight: Flight) -> None:
        """Withdrawn blocks may still be copied from by those who were told that they hold them."""
        try:
            await self.cache.wait_unheld(flight.dataset.cells(flight.file, flight.first, flight.count))
        except trio.Cancelled:
            # The engine ends: what is left in the file is the next one's to find, as after a kill.
            flight.dataset.folder.begin_fill(flight.file)
            raise

    async def withdraw(self, dataset: Dataset, file: int) -> Flight:
        """What is resident of a file goes as soon as those who hold it let go; nobody is told of it from now on."""
        while (work := dataset.working(file)).flights:  # a record without flights may have been forgotten meanwhile
            await self.wait_landing()
        flight = Flight(dataset, file, (0, dataset.size(file)), demand=False, visible=False, on_arrival=lambda _: 0)
        work.flights.append(flight)
        flight.reserved = self.cache.withdraw(dataset, file, flight.first, flight.count)
        return flight

    async def scrub_all(self, flight: Flight) -> None:
        """The end of a file that was withdrawn."""
        dataset, file = flight.dataset, flight.file
        try:
            await self._wait_unheld(flight)
            await self.cache.scrub(dataset, file, self._leavings(flight), flight.reserved)
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
