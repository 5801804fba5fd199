"""Fills: brings what is absent, once, however many want it. The engine's middle: it knows files, room, jobs and
waiters.

A `bring` looks at what is absent, launches flights over what no flight covers yet, and waits. A flight runs in the
engine's own nursery: whoever waits for it may go away, it goes on. It claims room first; where there is none its
waiters are told so (`crowded out`) and have their bytes sent past the cache. What goes wrong reaches those who lack
bytes of that very flight. What a flight does is in `flying`, and in `grouped` for many small ones together.

How a file is fetched follows from its form: ranges of raw objects, frames of seekable zstd, else the whole object from
its start. Where nothing may be served below shard level, every form is fetched whole and published at the end.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

import trio

from mdsfs.plan.calendar import UNKNOWN
from streaming.engine.residency import BLOCK

from .checks import Checks
from .flights import Flight, Waiter, uncovered
from .flying import Flying
from .forms import Forms
from .framing import MOST_EDGES, Edges, cut_at_frames, frame_run
from .grouped import Grouped

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ..cache.cache import Cache
    from ..cache.cachedisk import CacheDisk
    from ..cache.dataset import Dataset, FileWork, Run
    from ..fetching.pool import FetcherPool
    from .flights import ByteRange, Landed
    from .framing import Framing

__all__ = ["Fills"]

log = logging.getLogger(__name__)

# Until the object's version is known only one flight of a file may be under way; it should not be a long one.
FIRST_PART = 1 << 20
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
        checks = Checks(cache, pool, self.edges)
        self.check = checks.check

        def verify(dataset: Dataset, file: int) -> None:
            nursery.start_soon(checks.verify, dataset, file, name=f"verify {dataset.number}/{file}")

        self.flying = Flying(cache, disk, pool, self.forms, self.edges, verify)
        self.wait_landing = self.flying.wait_landing
        self.waiting = 0
        self._nursery = nursery
        self._grouped = Grouped(self.flying, nursery)
        self._ready: list[Flight] = []
        self._again: list[Flight] = []
        self._part = max(part_size // BLOCK, 1)

    def __repr__(self) -> str:
        return f"Fills({self.flying}, {self.waiting} waiting)"

    @property
    def running(self) -> int:
        """Flights under way."""
        return self.flying.running

    @property
    def in_flight(self) -> int:
        """Blocks of all flights."""
        return self.flying.in_flight

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

    async def retire(self, dataset: Dataset, file: int) -> None:
        """What is resident of a file goes as soon as those who hold it let go; nobody is told of it from now on."""
        flight = await self.flying.withdraw(dataset, file)
        self._nursery.start_soon(self.flying.scrub_all, flight, name=f"retire {dataset.number}/{file}")

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
        if count > FIRST_PART // BLOCK and dataset.etag(file) is None and not dataset.working(file).flights:
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
            self._again.append(flight)
        self.flying.count(flight)
        if not self._ready:
            self._nursery.start_soon(self._depart, name="departure")
        self._ready.append(flight)
        return flight

    async def _depart(self) -> None:
        """Start what has been launched in this turn of the loop, small flights together."""
        await trio.lowlevel.cancel_shielded_checkpoint()  # a want's files are looked at beside each other
        ready, self._ready = self._ready, []
        again, self._again = self._again, []
        for number in {flight.dataset.number for flight in again} if log.isEnabledFor(logging.INFO) else ():
            own = [flight for flight in again if flight.dataset.number == number]
            ranges = ",".join(f"{flight.file}:{flight.start}-{flight.stop}" for flight in own)
            log.info("refetch dataset=%d ranges=%s", number, ranges)
        for demand in (True, False):
            self._grouped.depart([flight for flight in ready if flight.demand == demand])
