"""What any cache must fetch at least, and what the best one would: the two lines that a plan is measured against.

`lower_bound` needs no trace: an epoch needs U distinct bytes and at most C of them are there when it starts. `Belady`
replays a trace with the victim of furthest next use, which no policy beats where all units are of one size. Its
horizon is the rest of the epoch and the whole next one; it may pass a unit by that is needed later than all it keeps.

Traces that are too long to replay are thinned by unit: of every unit either all uses are kept or none, and the cache
shrinks with the share that is kept (spatial sampling, which preserves reuse distances).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Belady", "Thinned", "kept_units", "live_window", "lower_bound", "thin"]

# A replay costs about a microsecond a use; half a million keep the whole curve of a plan below a few seconds.
MOST_USES = 500_000
# Of a trace of which only the rate matters: a tenth of a second's work.
SAMPLED_USES = 50_000
# The share that is kept of a thinned trace's units is chosen by a multiplicative hash (Knuth): no pattern in the
# numbering of units survives it, and the same units are kept in every epoch.
_HASH = np.uint64(0x9E3779B97F4A7C15)


def lower_bound(distinct: int, cache: int) -> int:
    """Bytes that an epoch must fetch whatever the policy: `distinct` bytes are read, `cache` of them may be there."""
    return max(0, distinct - cache)


def live_window(units: NDArray[np.int64], sizes: NDArray[np.int64]) -> int:
    """The most bytes of units that are at once between their first and their last use in a trace.

    units: int64 [uses], sizes: int64 [units] bytes.
    """
    if not len(units):
        return 0
    first, last = _ends(units, len(sizes))
    used = np.flatnonzero(first < len(units))
    change = np.zeros(len(units) + 1, np.int64)
    np.add.at(change, first[used], sizes[used])
    np.subtract.at(change, last[used] + 1, sizes[used])
    return int(np.cumsum(change).max())


@dataclass(frozen=True)
class Thinned:
    """The uses of a share of all units. Bytes of it stand for `1 / share` as many."""

    units: NDArray[np.int64]
    share: float


def refetching(units: NDArray[np.int64], sizes: NDArray[np.int64], cache: int) -> float:
    """How often an epoch fetches what it reads, at best, when units come and go as a whole: 1.0 is once each.

    From the first `SAMPLED_USES` uses; units: int64 [uses], sizes: int64 [units] bytes.
    """
    few = units[:SAMPLED_USES]
    if not len(few):
        return 1.0
    fetched = Belady(sizes, cache).epoch(few, few)
    return fetched * len(units) / len(few) / max(int(sizes[np.unique(units)].sum()), 1)


def thin(units: NDArray[np.int64], sizes: NDArray[np.int64], most: int = MOST_USES) -> Thinned:
    """The trace itself, or where it has more than `most` uses, the uses of some of its units.

    The share is that of bytes, not of units: it is what the cache must shrink by.
    """
    if len(units) <= most:
        return Thinned(units, 1.0)
    kept = kept_units(len(sizes), most / len(units))
    total = int(sizes.sum())
    return Thinned(units[kept[units]], float(sizes[kept].sum()) / total if total else 1.0)


def kept_units(units: int, share: float) -> NDArray[np.bool_]:
    """bool [units]: about this share of them, the same ones whenever it is asked, and at least one."""
    hashes = (np.arange(1, units + 1, dtype=np.uint64) * _HASH) >> np.uint64(32)
    kept = hashes < np.uint64(int(share * 2**32))
    if not kept.any():
        kept[int(np.argmin(hashes))] = True
    return np.asarray(kept, np.bool_)


def _ends(units: NDArray[np.int64], count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Place of the first and the last use of each unit; `len(units)` and -1 for one that is not used."""
    places = np.arange(len(units), dtype=np.int64)
    first = np.full(count, len(units), np.int64)
    first[units[::-1]] = places[::-1]
    last = np.full(count, -1, np.int64)
    last[units] = places
    return first, last


def _first_in(following: NDArray[np.int64], count: int, start: int) -> NDArray[np.int64]:
    """Place, counted from `start`, of each unit's first use in `following`; beyond it where there is none."""
    return _ends(following, count)[0] + start


def next_uses(units: NDArray[np.int64], later: NDArray[np.int64]) -> NDArray[np.int64]:
    """Place of the next use of each use's unit, int64 [uses]; `later` says where a unit is used after all of these."""
    order = np.argsort(units, kind="stable")
    same = units[order[1:]] == units[order[:-1]]
    found = later[units]
    found[order[:-1][same]] = order[1:][same]
    return found


class Belady:
    """A cache of `cache` bytes that knows this epoch and the next; `epoch` replays one after the other."""

    def __init__(self, sizes: NDArray[np.int64], cache: float) -> None:
        self._sizes: list[int] = sizes.tolist()
        self._cache = cache
        self._used = 0
        self._next: dict[int, int] = {}  # of what is resident: place of its next use, counted from the first epoch
        self._heap: list[tuple[int, int]] = []  # (-next use, unit); entries that `_next` contradicts are stale
        self._at = 0

    def epoch(self, units: NDArray[np.int64], following: NDArray[np.int64]) -> int:
        """Bytes fetched by one epoch's uses, int64 [uses], when `following` are the next epoch's."""
        later = _first_in(following, len(self._sizes), len(units))
        self._look_further(self._at + len(units), later)
        after = next_uses(units, later) + self._at
        fetched = 0
        sizes, resident, heap = self._sizes, self._next, self._heap
        for unit, then in zip(units.tolist(), after.tolist(), strict=True):
            if unit not in resident:
                fetched += sizes[unit]
                if not self._make_room(sizes[unit], then):
                    continue
                self._used += sizes[unit]
            resident[unit] = then
            heapq.heappush(heap, (-then, unit))
        self._at += len(units)
        return fetched

    def _look_further(self, end: int, later: NDArray[np.int64]) -> None:
        """What this epoch does not use was beyond the horizon; now the epoch after it is known as well."""
        for unit, then in list(self._next.items()):
            if then >= end:
                self._next[unit] = self._at + int(later[unit])
                heapq.heappush(self._heap, (-self._next[unit], unit))

    def _make_room(self, size: int, then: int) -> bool:
        """Take away what is needed later than `then`; False, and nothing taken, where that is not enough."""
        victims: list[tuple[int, int]] = []
        free = self._cache - self._used
        while free < size and self._heap and -self._heap[0][0] > then:
            entry = heapq.heappop(self._heap)
            if self._next.get(entry[1]) == -entry[0]:
                victims.append(entry)
                free += self._sizes[entry[1]]
        if free < size:
            for entry in victims:
                heapq.heappush(self._heap, entry)
            return False
        for _, unit in victims:
            del self._next[unit]
            self._used -= self._sizes[unit]
        return True
