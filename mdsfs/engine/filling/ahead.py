"""Fetching ahead: what streams will read next, as long as nobody's present need suffers.

A queue of spans and the task that turns them into flights, so many at a time that the fetchers are never idle between
two reads of a fast reader. What can't be had now (no room, a failing store) is forgotten: the reader will ask, and hear
why.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING

import trio

from streaming.engine.residency import BLOCK
from streaming.errors import StreamingError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..cache.dataset import Dataset
    from .fills import Fills
    from .widen import Span

__all__ = ["Ahead"]

log = logging.getLogger(__name__)

# Bytes on their way at once: 1 GB/s at 64 ms, four parts of the usual size.
IN_FLIGHT = 64 << 20
# Of a small cache only a part may be on its way, or it would push out what has just been brought.
SHARE = 4
MAX_QUEUED = 512


class Ahead:
    """The queue. `run` must be running."""

    def __init__(self, fills: Fills, limit: int, part_size: int, nursery: trio.Nursery) -> None:
        self._fills = fills
        self._budget = min(IN_FLIGHT, limit // SHARE) // BLOCK
        self._part = part_size
        self._nursery = nursery
        self._queue: deque[tuple[Dataset, int, int, int]] = deque()
        self._work = trio.Event()

    def __repr__(self) -> str:
        return f"Ahead({len(self._queue)} spans queued)"

    def add(self, dataset: Dataset, spans: Iterable[Span]) -> None:
        """Fetch these spans when their turn comes."""
        for file, start, stop in spans:
            while start < stop:
                end = min(stop, start - start % self._part + self._part)
                self._queue.append((dataset, file, start, end))
                start = end
        while len(self._queue) > MAX_QUEUED:
            self._queue.popleft()
        self._work.set()

    def forget(self, dataset: Dataset) -> None:
        """Nobody has this dataset open any more."""
        self._queue = deque(each for each in self._queue if each[0] is not dataset)

    async def run(self) -> None:
        """Launch for ever."""
        while True:
            await self._work.wait()
            if not self._queue:
                self._work = trio.Event()
                continue
            if self._fills.in_flight and self._fills.in_flight >= self._budget:
                await self._fills.wait_landing()
                continue
            self._launch(*self._queue.popleft())
            await trio.lowlevel.checkpoint()

    def _launch(self, dataset: Dataset, file: int, start: int, stop: int) -> None:
        if dataset.checked[file] and self._fills.forms.is_known(dataset, file):
            work = dataset.work.get(file)
            if work is None or work.error is None:
                self._fills.launch(dataset, file, start, stop, demand=False)
        else:
            # may take as long as the store does: the others behind it must not wait
            self._nursery.start_soon(self._learn, dataset, file, start, stop)

    async def _learn(self, dataset: Dataset, file: int, start: int, stop: int) -> None:
        try:
            await self._fills.check(dataset, file)
            await self._fills.forms.find(dataset, file)
        except StreamingError as error:
            log.debug("not fetching ahead: %s", error)
            return
        self._queue.appendleft((dataset, file, start, stop))
        self._work.set()
