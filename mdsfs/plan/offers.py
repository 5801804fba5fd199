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

__all__ = ["Offers", "key"]

# The planner is asked for so many units at least.
LISTED = 256


class Offers:
    """The planner's units, furthest next use first. `turn`: the planner's; offers of another turn are out of date."""

    def __init__(self, planner: Planner) -> None:
        self.turn = planner.turn
        self._planner = planner
        self._units: deque[Unit] = deque()
        self._passed: set[tuple[int, int]] = set()

    @property
    def is_fresh(self) -> bool:
        """Whether nothing of it was offered yet."""
        return not self._passed

    def units(self, distance: int) -> Iterator[Unit]:
        """What may go for something that is read after `distance` samples. A shard is offered until all of it was."""
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

    def has_passed(self, dataset: int, sample: int) -> bool:
        """Whether a sample was offered. One that was not, and is here, is read sooner than all that were."""
        return (dataset, sample) in self._passed

    def _pass_by(self) -> None:
        self._passed.add(key(self._units.popleft()))

    def _look(self, distance: int) -> bool:
        # as many as there were: what was passed is looked at again, so all of it costs twice as much at most
        most = max(LISTED, len(self._passed))
        fresh = (unit for unit in self._planner.victims(distance) if key(unit) not in self._passed)
        self._units.extend(itertools.islice(fresh, most))
        return bool(self._units)


def key(unit: Unit) -> tuple[int, int]:
    """Tells units of all datasets apart: a sample's number, or a shard's as a negative one."""
    return unit.dataset, -1 - unit.shard if unit.sample is None else unit.sample
