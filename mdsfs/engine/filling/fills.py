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

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import trio

from mdsfs.plan.calendar import UNKNOWN
from streaming.engine.residency import BLOCK, blocks_of

from ..cache.victims import tell
from .checks import Checks
from .flights import Flight, Waiter, absent, uncovered
from .flying import Flying
from .forms import Forms
from .framing import MOST_EDGES, Edges, cut_at_frames, frame_run, frame_sample
from .grouped import Grouped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from ..cache.cache import Cache
    from ..cache.cachedisk import CacheDisk
    from ..cache.dataset import Dataset, FileWork, Run
    from ..fetching.pool import FetcherPool
    from .flights import ByteRange, Landed
    from .framing import Framing

__all__ = ["Fills"]

# What no plan asks for, and nobody waits for, may only push out what no plan needs.
AFTER_ALL = UNKNOWN - 1


def _hurry(work: FileWork, start: int, stop: int) -> None:
    """Somebody waits for these bytes: flights over them that have not begun go first."""
    for flight in work.flights:
        if flight.covers[0] < stop and start < flight.covers[1]:
            flight.demand = True


def _room(work: FileWork, run: Run, blocks: int) -> Run:
    """The run of blocks around another that no flight lies on; that one is part of it whatever lies on it."""
    start, stop = run[0] * BLOCK, sum(run) * BLOCK
    low = max((min(-(-each.covers[1] // BLOCK), run[0]) for each in work.flights if each.covers[0] < start), default=0)
    after = (max(each.covers[0] // BLOCK, sum(run)) for each in work.flights if each.covers[1] > stop)
    return low, min(after, default=blocks) - low


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

        self.cuts: Callable[[Dataset, int], bool] = lambda dataset, file: False
        """Whether samples of a file are brought without what else lies on their outer blocks."""
        self.worth: Callable[[Dataset, int, ByteRange, ByteRange], ByteRange] = lambda dataset, file, span, most: most
        """What is kept of what comes with samples of such a file: the range of these, and the range of all."""
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

    async def bring(
        self, dataset: Dataset, file: int, around: Mapping[ByteRange, ByteRange], *, samples: bool = False
    ) -> set[ByteRange]:
        """Return when the ranges are resident, which the caller must hold; the result is those that found no room.

        `around` says, range by range, what to fetch with it; `samples`: each range is one sample, exactly. Raises what
        kept a range from arriving.
        """
        await self.check(dataset, file)
        work = dataset.working(file)
        waiter = Waiter((each for each in around if not dataset.is_here(file, *each, sample=samples)), samples=samples)
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
        waiter.pending -= {each for each in waiter.pending if dataset.is_here(file, *each, sample=waiter.samples)}
        if not waiter.pending:
            return
        if (error := dataset.working(file).error) is not None:
            raise error
        framed = self.forms.has_frames(dataset, file)
        for each in sorted(waiter.pending):
            # frames bring their own surroundings
            span = each if framed else around[each]
            self.launch(
                dataset, file, *span, demand=True, cut=waiter.samples and span == each and self.cuts(dataset, file)
            )
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
        cut: bool = False,
        distance: int = AFTER_ALL,
        landed: Landed | None = None,
    ) -> list[Flight]:
        """Flights over what is absent of a byte range and not on its way. The file's form must be known.

        `cut`: the range begins and ends with samples that lie on several blocks, and nothing else of their outer
        blocks is needed. For what nobody waits for, `distance` says what must stay: whatever a plan needs sooner.
        `landed` hears of the end of each flight.
        """
        how = _How(demand=demand, distance=-1 if demand else distance, landed=landed)
        work, size = dataset.working(file), dataset.size(file)
        stop = min(stop, size)
        if self.forms.is_whole(dataset, file):
            start, stop = 0, size
            pieces = list(uncovered(work, (start, stop)))
            # else its one flight is under way
            launched = [self._launch(dataset, file, (start, stop), how)] if pieces == [(start, stop)] else []
        elif self.forms.has_frames(dataset, file):
            launched = self._launch_frames(dataset, file, absent(dataset, file, (start, stop), cut=cut), how)
        else:
            launched = [
                self._launch(dataset, file, part, how)
                for span in absent(dataset, file, (start, stop), cut=cut)
                for piece in uncovered(work, span)
                for part in self._parts(piece)
            ]
        if demand:
            _hurry(work, start, stop)
        return launched

    def _launch_frames(self, dataset: Dataset, file: int, spans: Iterable[ByteRange], how: _How) -> list[Flight]:
        """Flights over the frames that these ranges need, none of which is on its way."""
        work, table = dataset.working(file), self.forms.table(dataset, file)
        size, key = dataset.size(file), (dataset.number, file)
        launched: list[Flight] = []
        for span in list(spans):
            while (piece := next(uncovered(work, span), None)) is not None:
                run = blocks_of(piece[0], min(piece[1], size) - piece[0])
                cut = cut_at_frames(table, run, self._part)
                room = _room(work, cut, dataset.blocks(file))
                low, high = piece[0], min(piece[1] if cut == run else sum(cut) * BLOCK, size)
                if low % BLOCK or (high % BLOCK and high < size):
                    framing = frame_sample(table, (low, high), size, room)
                    framing = replace(framing, span=self.worth(dataset, file, (low, high), framing.span))
                else:
                    framing = frame_run(table, self.edges, key, cut, size, room)
                launched.append(self._launch(dataset, file, framing.span, how, framing=framing))
        return launched

    def _parts(self, span: ByteRange) -> Iterable[ByteRange]:
        start, stop = span
        size = self._part * BLOCK
        while start < stop:
            # by multiples of the part size, so that neighbouring readers cut a shard at the same places
            end = min(stop, start - start % size + size)
            yield start, end
            start = end

    def _launch(
        self, dataset: Dataset, file: int, span: ByteRange, how: _How, framing: Framing | None = None
    ) -> Flight:
        visible = not dataset.shard_level
        flight = Flight(
            dataset,
            file,
            span,
            demand=how.demand,
            visible=visible,
            on_arrival=self.cache.commit,
            framing=framing,
            distance=how.distance,
            landed=how.landed,
        )
        dataset.working(file).flights.append(flight)
        # What is resident between must not be taken away, or it would be written again without a claim.
        flight.hold = self.cache.hold(dataset, file, flight.first, flight.count)
        if self.cache.was_evicted(dataset, file, flight.first, flight.count):
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
        tell("refetch", ((flight.dataset.number, flight.file, flight.start, flight.stop) for flight in again))
        for demand in (True, False):
            self._grouped.depart([flight for flight in ready if flight.demand == demand])
