"""Units that may go, each offered once until a next use changes. Pure.

Of small samples most can't go for the sake of their neighbours on the same blocks: asked for again and again, the
planner would have them looked at each time.
"""

from __future__ import annotations

import itertools
from collections import deque
from typing import TYPE_CHECKING

from .state import HERE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .planner import Planner
    from .state import Unit

__all__ = ["Offers"]

# The planner is asked for so many units at least.
LISTED = 64

_Key = tuple[int, int]
"""Of a unit: its dataset, and a sample's number or a shard's as a negative one."""


class Offers:
    """The planner's units, furthest next use first."""

    def __init__(self, planner: Planner) -> None:
        self._planner = planner
        self._begin()

    def units(self, distance: int) -> Iterator[Unit]:
        """What may go for something that is read after `distance` samples, each unit once.

        What earlier calls had is left out at first; if the rest is not enough, it may do by now.
        """
        if self._turn != self._planner.turn:
            self._begin()
        offered: set[_Key] = set()
        while True:
            was_fresh = not self._passed
            for unit in self._rest(distance):
                if (key := _key(unit)) not in offered:
                    offered.add(key)
                    yield unit
            self._begin()
            if was_fresh:
                return

    def has_passed(self, dataset: int, sample: int) -> bool:
        """Whether a sample was offered. One that was not, and is here, is read sooner than all that were."""
        return (dataset, sample) in self._passed

    def _begin(self) -> None:
        self._turn = self._planner.turn
        self._units: deque[Unit] = deque()
        self._passed: set[_Key] = set()

    def _rest(self, distance: int) -> Iterator[Unit]:
        """What was not offered yet in this turn; a shard is, until all of it was."""
        while self._units or self._look(distance):
            unit = self._units[0]
            if unit.distance <= distance:
                return
            if unit.sample is None:
                yield unit
                self._pass_by()
            else:
                self._pass_by()
                if self._planner.dataset(unit.dataset).samples[unit.sample] == HERE:
                    yield unit

    def _pass_by(self) -> None:
        self._passed.add(_key(self._units.popleft()))

    def _look(self, distance: int) -> bool:
        # as many as there were: what was passed is looked at again, so all of it costs twice as much at most
        most = max(LISTED, len(self._passed))
        fresh = (unit for unit in self._planner.victims(distance) if _key(unit) not in self._passed)
        self._units.extend(itertools.islice(fresh, most))
        return bool(self._units)


def _key(unit: Unit) -> _Key:
    return unit.dataset, -1 - unit.shard if unit.sample is None else unit.sample
