"""Units by the position of their next use: who asks gets the one that is needed last.

A unit is a number (a sample of a dataset, or a shard). Entries go into buckets of neighbouring positions and are never
taken out when things change: an entry is looked at again when its bucket has become the last one, and then it is
dropped, or put where it belongs by now. That makes every change cheap, and costs eight bytes an entry.
"""

from __future__ import annotations

import heapq
from array import array
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    Current = Callable[[NDArray[np.int64]], NDArray[np.int64]]
    """Where units are used next, by now; `ABSENT` for those that are not in the cache. int64 [n] both."""

__all__ = ["ABSENT", "UNKNOWN", "Calendar"]

UNKNOWN = 1 << 60
"""The next use of a unit that the known orders do not use again."""
ABSENT = -1
"""Said of a unit that is not in the cache: its entry is dropped."""
# Units without a known next use may be very many; so many of them are looked at at a time. Few are asked for at once.
_SLICE = 512
# The bucket that is being passed is looked at so many times.
_PARTS = 8


class Calendar:
    """A priority queue of units, furthest next use first. `width`: positions that share a bucket."""

    def __init__(self, width: int) -> None:
        self._width = max(width, 1)
        self._buckets: dict[int, array[int]] = {}
        self._passed = 0
        self._order: list[int] = []  # a heap of negated bucket numbers; some may have gone

    def __repr__(self) -> str:
        return f"Calendar({sum(map(len, self._buckets.values()))} entries in {len(self._buckets)} buckets)"

    def put(self, units: NDArray[np.int64], keys: NDArray[np.int64]) -> None:
        """These units have their next use at these positions from now on; int64 [n] both."""
        if not len(units):
            return
        numbers = keys // self._width
        if numbers[0] == numbers[-1] and (numbers == numbers[0]).all():
            self._bucket(int(numbers[0])).frombytes(np.ascontiguousarray(units, np.int64).tobytes())
            return
        for number in np.unique(numbers).tolist():
            self._bucket(number).frombytes(np.ascontiguousarray(units[numbers == number], np.int64).tobytes())

    def furthest(self, current: Current) -> Iterator[tuple[int, int]]:
        """(position of the next use, unit), furthest first, as long as the caller likes.

        `current` says where units are used next, by now: `ABSENT` for those that are not in the cache. What is put
        while the iterator is under way may be missed by it.
        """
        seen: set[int] = set()
        try:
            while self._order:
                number = -heapq.heappop(self._order)
                if number in self._buckets and number not in seen:
                    seen.add(number)
                    yield from self._tidy(number, current)
        finally:
            for number in seen & self._buckets.keys():
                heapq.heappush(self._order, -number)

    def pass_by(self, front: int, current: Current) -> None:
        """Nothing before this position is read any more: what was listed there is put where it is used next."""
        if 0 <= front - self._passed < max(self._width // _PARTS, 1):
            return
        self._passed = front
        for number in [each for each in self._buckets if each <= front // self._width]:
            units = np.unique(np.frombuffer(self._buckets.pop(number).tobytes(), np.int64))
            keys = current(units)
            self.put(units[keys >= 0], keys[keys >= 0])

    def _tidy(self, number: int, current: Current) -> Iterator[tuple[int, int]]:
        """The valid entries of one bucket; the others are dropped or put elsewhere."""
        bucket = self._buckets.pop(number)
        rest = bucket[:0]
        try:
            while bucket:
                cut = max(len(bucket) - _SLICE, 0) if number * self._width >= UNKNOWN // 2 else 0
                units = np.unique(np.frombuffer(bucket[cut:].tobytes(), np.int64))
                del bucket[cut:]
                keys = current(units)
                numbers = keys // self._width
                here = numbers == number
                moved = ~here & (keys >= 0)
                self.put(units[moved], keys[moved])
                units, keys = units[here], keys[here]
                ranked = np.argsort(keys, kind="stable")
                rest.frombytes(units[ranked].tobytes())
                for place in ranked[::-1].tolist():
                    yield int(keys[place]), int(units[place])
        finally:
            rest.extend(bucket)
            if rest:
                if number in self._buckets:
                    self._buckets[number].extend(rest)
                else:
                    self._buckets[number] = rest

    def _bucket(self, number: int) -> array[int]:
        found = self._buckets.get(number)
        if found is None:
            found = self._buckets[number] = array("q")
            heapq.heappush(self._order, -number)
        return found
