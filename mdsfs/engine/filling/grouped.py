"""Small flights that are launched together fly together: one claim of room, one job and one landing for dozens.

What of a group does not arrive (a refusal, a break, wrong bytes, a fetcher that died three times) flies again alone,
where it is tried once more and named if it stays wrong. So nothing is decided here about what is broken.
"""

from __future__ import annotations

import contextlib
import logging
import os
from typing import TYPE_CHECKING

import trio

from streaming.engine.residency import BLOCK
from streaming.errors import CacheFullError, StreamingError

from ..cache.policy import Incoming
from ..fetching.jobs import GROUP_BYTES, GROUP_PARTS, SMALL, FramesJob, GroupJob, JobResult, Part, RangeJob
from ..fetching.pool import AHEAD, DEMAND

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ..cache.dataset import Dataset
    from ..cache.ledger import FileKey
    from ..fetching.ticket import Told
    from .flights import Flight
    from .flying import Flying

__all__ = ["Grouped"]

log = logging.getLogger(__name__)

# A group takes so much of the cache at most: what it pushes out is read later than all of it.
SHARE = 32

Left = dict["Flight", None]
"""Flights of a group that have not landed, in the order in which they are read."""


class _Files:
    """The cache files that a group writes into, open."""

    def __init__(self) -> None:
        self.numbers: dict[FileKey, int] = {}
        self.fds: list[int] = []
        self._all: list[tuple[Dataset, int]] = []
        self.arrived: dict[FileKey, Flight] = {}
        """One of the flights that have arrived in each file."""

    def number(self, dataset: Dataset, file: int) -> int:
        """The place of a file's descriptor; opens it."""
        key = (dataset.number, file)
        if key not in self.numbers:
            self.fds.append(dataset.folder.open_file(file))
            self.numbers[key] = len(self.numbers)
            self._all.append((dataset, file))
            dataset.folder.begin_fill(file)
        return self.numbers[key]

    def close(self, flying: Flying) -> None:
        """Nothing more is written into them."""
        with contextlib.ExitStack() as ending:
            for (dataset, file), fd in zip(self._all, self.fds, strict=True):
                ending.callback(self._close, flying, dataset, file, fd)

    def _close(self, flying: Flying, dataset: Dataset, file: int, fd: int) -> None:
        flight = self.arrived.get((dataset.number, file))
        complete = flight is not None and dataset.is_complete(file)
        level = flying.level(flight, JobResult()) if flight is not None else None
        try:
            dataset.folder.end_fill(file, fd, level=level)
        finally:
            os.close(fd)
        if complete and flight is not None:
            flying.settle(flight, JobResult())


class Grouped:
    """Makes groups of flights, and flies them."""

    def __init__(self, flying: Flying, nursery: trio.Nursery) -> None:
        self._flying, self._nursery = flying, nursery
        self._most_bytes = min(GROUP_BYTES, flying.cache.ledger.limit * BLOCK // SHARE)

    def depart(self, flights: Iterable[Flight]) -> None:
        """Fly these, all of them for somebody who waits, or none; together where they may."""
        etags: dict[FileKey, str | None] = {}
        for group in self._cut(flights, etags):
            if len(group) == 1:
                self._nursery.start_soon(self._flying.fly, group[0], name="fill")
            else:
                self._nursery.start_soon(self._fly, group, etags, name=f"fill of {len(group)}")

    def _cut(self, flights: Iterable[Flight], etags: dict[FileKey, str | None]) -> Iterator[list[Flight]]:
        """Groups of one source each, in the order of reading; and the versions of their objects."""
        groups: dict[int, tuple[list[Flight], list[int]]] = {}
        for flight in flights:
            key = (flight.dataset.number, flight.file)
            if key not in etags:
                etags[key] = flight.dataset.etag(flight.file)
            size = self._size(flight)
            whole = self._flying.forms.is_whole(flight.dataset, flight.file)
            if whole or etags[key] is None or size > min(SMALL, self._most_bytes):
                yield [flight]
                continue
            group, total = groups.setdefault(flight.dataset.number, ([], [0]))
            if len(group) >= GROUP_PARTS or total[0] + size > self._most_bytes:
                yield group
                group, total = groups[flight.dataset.number] = ([], [0])
            group.append(flight)
            total[0] += size
        yield from (group for group, _ in groups.values())

    def _size(self, flight: Flight) -> int:
        if flight.framing is None:
            return flight.count * BLOCK
        return max(flight.count * BLOCK, sum(each.zip_len for each in flight.framing.frames))

    # ---- flying ------------------------------------------------------------------------------------------------------

    async def _fly(self, flights: list[Flight], etags: dict[FileKey, str | None]) -> None:
        left: Left = dict.fromkeys(flights)
        try:
            await self._clear_way(left)
            if left:
                await self._fetch(flights, left, etags)
        except (StreamingError, OSError) as error:
            log.debug("%d fills of a group are left: %s", len(left), error)
        except BaseException:
            for flight in left:
                # Shielded and cancelled: nobody waits for what is withdrawn and still held, maybe by the next of these.
                with trio.CancelScope(shield=True) as scope:
                    scope.cancel()
                    await self._flying.land(flight, None, no_room=False)
            raise
        self._alone(left)

    def _alone(self, flights: Iterable[Flight]) -> None:
        for flight in flights:
            self._nursery.start_soon(self._flying.fly, flight, name="fill again")

    async def _clear_way(self, left: Left) -> None:
        """Wait until no earlier life is in the way, and claim the room; if need be only for what is read first."""
        flying = self._flying
        if not flying.disk.takes(sum(flight.count for flight in left) * BLOCK):
            await self._no_room(left, list(left))
        await self._no_room(left, [each for each in left if each.dataset.working(each.file).outside])
        for flight in left:
            work = flight.dataset.working(flight.file)
            for cell in flight.dataset.cells(flight.file, flight.first, flight.count) if work.busy else ():
                while cell in work.busy:
                    await work.busy[cell].wait()
        while left:
            claims = [
                (each, each.count - each.dataset.residency.count(each.file, each.first, each.count)) for each in left
            ]
            # what is read after the last of them may go; for those that somebody waits for, anything
            incoming = Incoming(max(-1 if flight.demand else flight.distance for flight in left))
            if await flying.cache.reserve_all([(each.dataset, each.file, n) for each, n in claims], incoming):
                for flight, absent in claims:
                    flight.reserved = absent
                return
            await self._no_room(left, list(left)[len(left) // 2 :], incoming.distance)

    async def _no_room(self, left: Left, flights: list[Flight], tried: int = -1) -> None:
        """These find none; but more may go for those that somebody waits for by now than was `tried`."""
        for flight in flights:
            del left[flight]
        again = [flight for flight in flights if flight.demand and tried >= 0]
        self._alone(again)
        for flight in flights:
            if flight not in again:
                await self._flying.land(flight, None, no_room=True)

    async def _fetch(self, flights: list[Flight], left: Left, etags: dict[FileKey, str | None]) -> None:
        flying, files = self._flying, _Files()
        dataset = flights[0].dataset

        def written(parts: list[Told]) -> None:
            self._bring([(flights[number], edges) for number, edges in parts], left, files)

        try:
            parts = tuple(
                Part(number, files.number(flight.dataset, flight.file), self._job(flight, etags))
                for number, flight in enumerate(flights)
                if flight in left
            )
            priority = DEMAND if any(flight.demand for flight in left) else AHEAD
            await flying.pool.run_group(
                dataset.url, dataset.remote_options, GroupJob(parts), files.fds, priority=priority, on_parts=written
            )
        finally:
            files.close(flying)
        if not left:
            flying.disk.worked()

    def _job(self, flight: Flight, etags: dict[FileKey, str | None]) -> RangeJob | FramesJob:
        job = self._flying.job(flight, etags[flight.dataset.number, flight.file])
        assert isinstance(job, RangeJob | FramesJob)
        return job

    def _bring(self, arrived: list[tuple[Flight, tuple[tuple[int, bytes], ...]]], left: Left, files: _Files) -> None:
        """Flights of which every byte is in its file: make them resident, all at once. Never waits, never fails."""
        flying = self._flying
        for flight, edges in arrived:
            for at, data in edges:
                flying.edges.keep((flight.dataset.number, flight.file), at, data)
        fresh, error = flying.cache.commit_all([flight.arrival for flight, _ in arrived])
        if error is not None:  # as it stands the others fly again, and meet it themselves
            flying.disk.refused(CacheFullError(f"the disk under the cache does not take any more: {error.strerror}"))
        for (flight, _), blocks in zip(arrived, fresh, strict=False):
            flight.arrived(blocks)
            files.arrived[flight.dataset.number, flight.file] = flight
            del left[flight]
            flying.land_now(flight)
