"""A flight: one fill under way, and those who wait for what it brings. No I/O, no waiting: bookkeeping between the two.

A flight covers absent bytes of one file, and no two flights of a file overlap: that is what makes every byte arrive
once however many ask for it. It covers whole blocks, but where a sample begins or ends that was asked for alone: there
two flights may write into one block, each its own part. Blocks become resident in order, as the fetcher reports what it
has written; each waiter is woken when the last block that it lacked is there, or when the flight that was to bring one
has ended without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from streaming.engine.residency import BLOCK, blocks_of

from ..cache.policy import Arrival

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from streaming.errors import StreamingError

    from ..cache.cache import Hold
    from ..cache.dataset import Dataset, FileWork
    from .framing import Framing

    Landed = Callable[["Flight"], None]

__all__ = ["ByteRange", "Flight", "Waiter", "absent", "uncovered"]

ByteRange = tuple[int, int]  # start, stop


class Waiter:
    """One who waits for ranges of one file; `samples`: each is one sample, exactly."""

    __slots__ = ("crowded_out", "error", "event", "pending", "samples")

    def __init__(self, ranges: Iterable[ByteRange], *, samples: bool = False) -> None:
        self.samples = samples
        self.pending: set[ByteRange] = set(ranges)
        self.crowded_out: set[ByteRange] = set()
        """Ranges for which there is no room."""
        self.event = trio.Event()
        self.error: StreamingError | None = None

    def __repr__(self) -> str:
        return f"Waiter({sorted(self.pending)}, no room for {sorted(self.crowded_out)}, error={self.error})"

    def arrived(self, dataset: Dataset, file: int, start: int, stop: int) -> None:
        """Bytes have become resident; wakes when they were the last ones."""
        there = [
            each
            for each in self.pending
            if each[0] < stop and start < each[1] and dataset.is_here(file, *each, sample=self.samples)
        ]
        self.pending.difference_update(there)
        if there and not self.pending:
            self.event.set()

    def ended(self, start: int, stop: int, error: StreamingError | None, *, no_room: bool) -> None:
        """A flight over these bytes has ended. With an error: it is ours if we lack anything of them."""
        concerned = {each for each in self.pending if each[0] < stop and start < each[1]}
        if not concerned:
            return
        if no_room:
            self.pending -= concerned
            self.crowded_out |= concerned
        self.error = self.error or error
        self.event.set()


class Flight:
    """One fill. `visible`: what arrives is resident at once; else when the whole has been verified."""

    __slots__ = (
        "_later",
        "_on_arrival",
        "broken",
        "count",
        "covers",
        "dataset",
        "demand",
        "distance",
        "ended",
        "file",
        "first",
        "framing",
        "frontier",
        "hold",
        "landed",
        "no_room",
        "reserved",
        "start",
        "stop",
        "visible",
    )

    def __init__(
        self,
        dataset: Dataset,
        file: int,
        span: ByteRange,
        *,
        demand: bool,
        visible: bool,
        on_arrival: Callable[[Arrival], int],
        framing: Framing | None = None,
        distance: int = -1,
        landed: Landed | None = None,
    ) -> None:
        """`span`: whole blocks, or cut where a sample begins or ends. `on_arrival` makes blocks resident and returns
        how many of them took no room before.

        `distance`: what is needed sooner than this must stay for it, see `policy.Incoming`; `landed` hears of the end.
        """
        self.dataset = dataset
        self.file = file
        self.start = span[0]
        """First byte."""
        self.stop = min(span[1], dataset.size(file))
        """Byte after the last one, inside the file."""
        self.first, self.count = blocks_of(self.start, self.stop - self.start)
        self.framing = framing
        self.covers = framing.covers if framing else span
        """Bytes that no other flight is launched over: this one's, and those of its frames."""
        self.demand = demand
        self.visible = visible
        self.distance = distance
        self.landed = landed
        self.reserved = 0
        """Blocks claimed and not yet resident."""
        self.hold: Hold = ()
        self.no_room = False
        """It came to nothing for want of room."""
        self.ended = False
        """It has come to nothing and is clearing up."""
        self.broken: OSError | None = None
        """Why what has arrived could not be made resident (a full disk)."""
        self._on_arrival = on_arrival
        self.reset()

    def __repr__(self) -> str:
        why = "demand" if self.demand else "ahead"
        return f"Flight(file {self.file}, blocks {self.first}+{self.count}, {why}, written to {self.frontier})"

    @property
    def arrival(self) -> Arrival:
        """All of it, as it becomes resident."""
        front = self.stop % BLOCK != 0 and self.stop != self.dataset.size(self.file)
        return Arrival(self.dataset, self.file, self.first, self.count, self.start % BLOCK != 0, front)

    def end(self) -> None:
        """It has come to nothing and is going to clear up: from now on nobody begins to write into its outer blocks."""
        self.ended = True
        low, high = self.covers
        self.covers = low // BLOCK * BLOCK, -(-high // BLOCK) * BLOCK

    def reset(self) -> None:
        """Start over: what was written is to be written again."""
        self.frontier = self.start
        self._later: dict[int, int] = {}

    def wrote(self, at: int, length: int) -> None:
        """The fetcher has written bytes of the file; extents may come out of order."""
        stop = at + length
        if at > self.frontier:
            self._later[at] = max(stop, self._later.get(at, 0))
            return
        before = self.frontier
        self.frontier = max(self.frontier, stop)
        while self._later and (at := min(self._later)) <= self.frontier:
            self.frontier = max(self.frontier, self._later.pop(at))
        if self.visible and self.broken is None:
            try:
                self._publish(before)
            except OSError as error:
                # the fetcher's messenger is no place for it: the flight's own task hears at the job's end
                self.broken = error

    def publish_all(self) -> None:
        """Everything was written and verified: make it resident. Raises what the disk says."""
        if self.broken is not None:
            raise self.broken
        self.frontier = self.stop
        self._publish(self.start)

    def arrived(self, fresh: int) -> None:
        """All of it has become resident together with others; so many blocks were not before."""
        self.frontier = self.stop
        self.reserved -= fresh
        self._tell_waiters(self.first, self.first + self.count)

    def _publish(self, before: int) -> None:
        first = before // BLOCK
        whole = self.frontier >= self.stop
        end = self.first + self.count if whole else self.frontier // BLOCK
        if end <= first:
            return
        _, _, _, _, back, front = self.arrival
        arrival = Arrival(self.dataset, self.file, first, end - first, back and first == self.first, front and whole)
        self.reserved -= self._on_arrival(arrival)
        self._tell_waiters(first, end)

    def _tell_waiters(self, first: int, end: int) -> None:
        work = self.dataset.work[self.file]
        for waiter in list(work.waiters):
            waiter.arrived(self.dataset, self.file, first * BLOCK, min(end * BLOCK, self.stop))


def absent(dataset: Dataset, file: int, span: ByteRange, *, cut: bool) -> Iterator[ByteRange]:
    """What is not there of a range of bytes, in whole blocks.

    `cut`: the range begins and ends with samples, each of which lies on another block as well; of the outer blocks only
    what belongs to them is needed.
    """
    start, stop = span[0], min(span[1], dataset.size(file))
    first, count = blocks_of(start, stop - start)
    last = first + count - 1
    back = cut and count > 1 and start % BLOCK != 0
    front = cut and count > 1 and stop % BLOCK != 0
    for begin, many in dataset.missing(file, first, count):
        low, high = begin * BLOCK, (begin + many) * BLOCK
        if back and begin == first:
            low = low + BLOCK if dataset.residency.has_back(file, first) else start
        if front and begin + many > last:
            high = high - BLOCK if dataset.residency.has_front(file, last) else stop
        if low < high:
            yield low, high


def uncovered(work: FileWork | None, span: ByteRange) -> Iterator[ByteRange]:
    """The parts of a range of bytes that no flight covers, in whole blocks but where the range itself is cut."""
    start, end = span
    for begin, stop in sorted(each.covers for each in work.flights) if work else ():
        if stop <= start or begin >= end:
            continue
        if begin > start:
            yield start, min(-(-begin // BLOCK) * BLOCK, end)
        start = max(start, stop)
        if start < end:
            start = max(start // BLOCK * BLOCK, span[0])
    if start < end:
        yield start, end
