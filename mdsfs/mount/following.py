"""Where readers are in an order that somebody else has told, guessed from the shards that each of them opens. Pure.

Most readers open a shard for every sample, one after the other as the order has them: the sequence of a thread's opens
is the sequence of shards of one lane (a rank's worker). A few opens tell which lane, and where in it; from there on
each open is one sample further. A reader that is lost is looked for anew, first at the beginning of lanes, then
everywhere.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["Follower", "Spot"]

# How far ahead of where a reader should be its shard is looked for: pages in memory hide some of what it reads.
WINDOW = 64
# Of its last so many opens a reader that is followed rightly had a good part where they were expected.
MEMORY, LEAST_EXPECTED = 32, 8
# So many shards in turn that come nowhere soon: it reads something else.
MISSES = 3
# Threads that are followed; programs that copy the dataset are readers too.
MAX_READERS = 1024
# A lane is looked through so many samples at a time.
PIECE = 1 << 20


@dataclass(slots=True)
class Spot:
    """A place in an order: the epoch, the lane, and which of the lane's entries comes next."""

    epoch: int
    rank: int
    worker: int
    at: int

    @property
    def lane(self) -> tuple[int, int, int]:
        return self.epoch, self.rank, self.worker


@dataclass(slots=True)
class _Reader:
    recent: deque[int] = field(default_factory=lambda: deque(maxlen=MEMORY))
    """The last shards of which it is not known where they are."""
    opened: int = 0
    """Shards since it was last known where, or not at all."""
    patience: int = 0
    """It is looked for everywhere after so many."""
    seen: int = 0
    spot: Spot | None = None
    expected: deque[bool] = field(default_factory=lambda: deque(maxlen=MEMORY))


class Follower:
    """Follows readers through the orders of the epochs that it is given."""

    def __init__(self, first_sample: NDArray[np.int64]) -> None:
        """`first_sample`: int64 [shards + 1], id of each shard's first sample."""
        self._first = first_sample
        self._orders: dict[int, NDArray[np.int64]] = {}
        self._readers: OrderedDict[int, _Reader] = OrderedDict()
        self._seen = 0

    def __repr__(self) -> str:
        return f"Follower(epochs {sorted(self._orders)}, {len(self.spots)} of {len(self._readers)} readers)"

    # ---- orders ------------------------------------------------------------------------------------------------------

    @property
    def epochs(self) -> list[int]:
        """Epochs of which the order is known."""
        return sorted(self._orders)

    @property
    def spots(self) -> list[Spot]:
        """Where each reader is that is followed."""
        return [reader.spot for reader in self._readers.values() if reader.spot is not None]

    @property
    def is_lost(self) -> bool:
        """Whether nobody who still reads is followed, although somebody has read enough to be found."""
        followed = [reader for reader in self._readers.values() if reader.spot is not None]
        recently = self._seen - 4 * max(MEMORY, len(followed))
        return bool(self.lost(patiently=False)) and not any(reader.seen > recently for reader in followed)

    def learn(self, epoch: int, order: NDArray[np.int64]) -> None:
        """The order of an epoch: int64 [ranks][workers][batches][batch size]."""
        self._orders[epoch] = order
        for reader in self._readers.values():  # who was looked for in vain may be in this one
            reader.patience = 0

    def forget(self, epoch: int) -> None:
        """An epoch in which nobody is any more."""
        self._orders.pop(epoch, None)
        for reader in self._readers.values():
            if reader.spot is not None and reader.spot.epoch == epoch:
                reader.spot = None

    def batches(self, epoch: int) -> int:
        """Batches of each lane."""
        return int(self._orders[epoch].shape[2])

    def batch(self, spot: Spot) -> int:
        """Which batch a reader is in."""
        return spot.at // int(self._orders[spot.epoch].shape[3])

    def _lane(self, lane: tuple[int, int, int]) -> NDArray[np.int64]:
        epoch, rank, worker = lane
        entries: NDArray[np.int64] = self._orders[epoch][rank, worker].reshape(-1)
        return entries

    def _shards(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """-1 for no sample."""
        return np.where(ids < 0, -1, np.searchsorted(self._first, ids, side="right") - 1)

    def _lanes(self) -> Iterator[tuple[int, int, int]]:
        for epoch, order in list(self._orders.items()):
            for rank in range(order.shape[0]):
                for worker in range(order.shape[1]):
                    yield epoch, rank, worker

    # ---- following ---------------------------------------------------------------------------------------------------

    def seen(self, thread: int, shard: int) -> Spot | None:
        """A thread has opened a shard; where it is now, if that is known."""
        reader = self._readers.get(thread)
        if reader is None:
            reader = self._readers[thread] = _Reader()
            if len(self._readers) > MAX_READERS:
                self._readers.popitem(last=False)
        self._readers.move_to_end(thread)
        self._seen += 1
        reader.seen = self._seen
        if reader.spot is not None:
            if self._go_on(reader, reader.spot, shard):
                return reader.spot
            reader.spot = None
            reader.opened, reader.patience = len(reader.recent), 0
        reader.recent.append(shard)
        reader.opened += 1
        self._look_at_beginnings(reader)
        return reader.spot

    def _go_on(self, reader: _Reader, spot: Spot, shard: int) -> bool:
        """One sample further; False where the reader must be somewhere else."""
        lane = self._lane(spot.lane)
        coming = self._shards(lane[spot.at : spot.at + WINDOW])
        if not (coming >= 0).any():
            return False
        found = np.flatnonzero(coming == shard)
        expected = bool(len(found)) and not (coming[: found[0]] >= 0).any()
        reader.expected.append(expected)
        if len(found):
            spot.at += int(found[0]) + 1
            reader.recent.clear()
        elif len(reader.recent) < MISSES:
            reader.recent.append(shard)
        else:
            return False
        return len(reader.expected) < MEMORY or sum(reader.expected) >= LEAST_EXPECTED

    def _look_at_beginnings(self, reader: _Reader) -> None:
        """Whether all that a reader has opened is how some lane begins that nobody else is in, and only one such."""
        if not 2 <= reader.opened <= MEMORY:
            return
        taken = {spot.lane for spot in self.spots if spot.at < 4 * MEMORY}
        opened = np.array(reader.recent)
        fitting = []
        for lane in self._lanes():
            if lane in taken:
                continue
            ids = self._lane(lane)[: 4 * MEMORY]
            begins = self._shards(ids[ids >= 0][: len(opened)])
            if np.array_equal(begins, opened):
                fitting.append((lane, int(np.flatnonzero(ids >= 0)[len(opened) - 1]) + 1))
        if len(fitting) == 1:
            (lane, at), *_ = fitting
            self._put(reader, Spot(*lane, at))

    def _put(self, reader: _Reader, spot: Spot) -> None:
        for other in self._readers.values():
            if other.spot is not None and (other.spot.rank, other.spot.worker) == (spot.rank, spot.worker):
                other.spot = None  # its process has ended, and this one has taken over
        reader.spot = spot
        reader.recent.clear()
        reader.opened = 0
        reader.expected.clear()

    # ---- looking everywhere ------------------------------------------------------------------------------------------

    def _enough(self) -> int:
        """So many opens are hardly ever the same by chance anywhere in the orders."""
        total = sum(order.size for order in self._orders.values()) or 1
        shards = max(len(self._first) - 1, 2)
        return max(3, min(MEMORY, math.ceil((math.log2(total) + 8) / math.log2(shards))))

    def lost(self, *, patiently: bool = True) -> dict[int, list[int]]:
        """Threads that have opened enough to be looked for: their last shards.

        Patiently: those that were looked for in vain only after as many more, ever fewer times.
        """
        enough = self._enough()
        return {
            thread: list(reader.recent)[-enough:]
            for thread, reader in self._readers.items()
            if reader.spot is None and len(reader.recent) >= enough
            if reader.opened >= reader.patience or not patiently
        }

    def missed(self, thread: int) -> None:
        """`find` has not found it."""
        if (reader := self._readers.get(thread)) is not None:
            reader.patience = 2 * max(reader.opened, MEMORY)

    def find(self, opened: list[int]) -> Spot | None:
        """Where these shards stand one after the other: the only such place. Takes as long as all orders are; changes
        nothing, and may run in another thread."""
        found: list[Spot] = []
        for lane in list(self._lanes()):
            order = self._orders.get(lane[0])
            if order is None:
                continue
            flat = order[lane[1], lane[2]].reshape(-1)
            for start in range(0, len(flat), PIECE):
                piece = flat[start : start + PIECE + 2 * MEMORY]
                found += [Spot(*lane, start + at) for at in self._find(piece, opened) if at <= PIECE + MEMORY]
            if len(found) > MEMORY:
                return None
        places = {(*spot.lane, spot.at): spot for spot in found}
        return next(iter(places.values())) if len(places) == 1 else None

    def _find(self, ids: NDArray[np.int64], opened: list[int]) -> list[int]:
        """Where in a piece of a lane the next sample stands, after every occurrence of what was opened."""
        places = np.flatnonzero(ids >= 0)
        shards = self._shards(ids[places])
        count = len(shards) - len(opened) + 1
        if count <= 0:
            return []
        fits = np.flatnonzero(shards[:count] == opened[0])
        for at, shard in enumerate(opened[1:], 1):
            fits = fits[shards[fits + at] == shard]
        ends: list[int] = (places[fits + len(opened) - 1] + 1).tolist()
        return ends

    def place(self, thread: int, spot: Spot, opened: list[int]) -> None:
        """`find` has found a thread there; it may have read on meanwhile."""
        reader = self._readers.get(thread)
        if reader is None or reader.spot is not None or spot.epoch not in self._orders:
            return
        recent = list(reader.recent)
        # what it has opened since: the part of `recent` behind what was looked for
        since = next((n for n in range(len(recent)) if recent[: len(recent) - n][-len(opened) :] == opened), None)
        self._put(reader, spot)
        for shard in recent[len(recent) - since :] if since else []:
            self.seen(thread, shard)
