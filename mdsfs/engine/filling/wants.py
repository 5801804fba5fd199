"""One `want`: hold the ranges, bring what is absent, pass by what finds no room. What a client gets is a `Claim`.

The ranges are held from before the first look until the claim is released: what has arrived for a want does not leave
again while the rest is still coming, or before the client has copied it.
"""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from streaming.engine.messages import MAX_FDS
from streaming.engine.residency import blocks_of
from streaming.errors import StreamingError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from mdsfs.metrics.timings import Timings

    from ..cache.cache import Cache, Hold
    from ..cache.dataset import Dataset
    from .fills import Fills
    from .flights import ByteRange
    from .passing import Parcel, Passing

__all__ = ["Claim", "WantedRange", "Wants"]


@dataclass(frozen=True, slots=True)
class WantedRange:
    """A range inside its file, and what to fetch around it when it is absent; `sample`: it is one sample, exactly."""

    file: int
    start: int
    stop: int
    around: ByteRange
    sample: bool = False


@dataclass(slots=True)
class Claim:
    """What a client has after its want was answered."""

    holds: dict[tuple[int, int, int], Hold] = field(default_factory=dict)
    passed: list[tuple[int, int, int, int]] = field(default_factory=list)
    """Ranges that are in memfds: file, offset, length, which memfd."""
    parcels: list[Parcel] = field(default_factory=list)


class Wants:
    """Serves the wants of all clients."""

    def __init__(self, cache: Cache, fills: Fills, passing: Passing, timings: Timings) -> None:
        self._cache = cache
        self._timings = timings
        self._fills = fills
        self._passing = passing
        self.hits = 0
        self.misses = 0

    def __repr__(self) -> str:
        return f"Wants({self.hits} hits, {self.misses} misses)"

    def claim_nowait(
        self, dataset: Dataset, wanted: Sequence[tuple[int, int, int]], *, samples: bool = False
    ) -> Claim | None:
        """The claim if everything is resident; None, and nothing held, if something is not.

        `samples`: each range is one sample, exactly.
        """
        for file, start, stop in wanted:
            if not dataset.checked[file] or not dataset.is_here(file, start, stop, sample=samples):
                return None
        self.hits += 1
        claim = Claim()
        for file, start, stop in wanted:
            self._hold(claim, dataset, file, start, stop)
            self._cache.touch(dataset, file, *blocks_of(start, stop - start))
        return claim

    async def claim(self, dataset: Dataset, wanted: Sequence[WantedRange]) -> Claim:
        """The claim, when everything is resident or passed by. Raises what kept it from that, with nothing held."""
        self.misses += 1
        begun, outcome = time.perf_counter(), "failed"
        claim = Claim()
        try:
            for each in wanted:
                self._hold(claim, dataset, each.file, each.start, each.stop)
            by_file: dict[int, list[WantedRange]] = defaultdict(list)
            for each in wanted:
                by_file[each.file].append(each)
            crowded = await self._bring_all(dataset, by_file)
            if crowded:
                await self._pass_all(claim, dataset, crowded)
            outcome = "passed" if crowded else "fetched"
        except BaseException:
            self.release(claim)
            raise
        finally:
            self._timings.of("read_wait_seconds", "outcome", outcome).observe(time.perf_counter() - begun)
        return claim

    def release(self, claim: Claim) -> None:
        """Let go of everything that the claim holds. Its memfds belong to the connection that sends them."""
        for hold in claim.holds.values():
            self._cache.unhold(hold)
        claim.holds.clear()

    def sent(self, claim: Claim) -> None:
        """The memfds have reached the client, or never will."""
        for parcel in claim.parcels:
            self._passing.sent(parcel)
        claim.parcels.clear()

    def _hold(self, claim: Claim, dataset: Dataset, file: int, start: int, stop: int) -> None:
        if (file, start, stop) not in claim.holds:
            claim.holds[file, start, stop] = self._cache.hold(dataset, file, *blocks_of(start, stop - start))

    async def _bring_all(
        self, dataset: Dataset, by_file: dict[int, list[WantedRange]]
    ) -> list[tuple[int, list[ByteRange]]]:
        """Bring every file's ranges, files beside each other; what found no room, by file."""
        crowded: list[tuple[int, list[ByteRange]]] = []

        async def bring(file: int) -> None:
            around = {(each.start, each.stop): each.around for each in by_file[file]}
            samples = all(each.sample for each in by_file[file])
            left = await self._fills.bring(dataset, file, around, samples=samples)
            if left:
                crowded.append((file, sorted(left)))

        await _all_of([functools.partial(bring, file) for file in by_file])
        return crowded

    async def _pass_all(self, claim: Claim, dataset: Dataset, crowded: list[tuple[int, list[ByteRange]]]) -> None:
        # What will not be in the cache need not be kept in it.
        for file, ranges in crowded:
            for start, stop in ranges:
                self._cache.unhold(claim.holds.pop((file, start, stop)))
        claim.parcels = await self._passing.fetch(dataset, crowded)
        if len(claim.parcels) > MAX_FDS:
            claim.parcels = [self._passing.merge(claim.parcels)]
        several = len(claim.parcels) > 1
        for which, (file, ranges) in enumerate(crowded):
            claim.passed.extend((file, start, stop - start, which if several else 0) for start, stop in ranges)


async def _all_of(tasks: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """Run them beside each other; the first error of ours ends the others and is raised as it is."""
    if len(tasks) == 1:
        await tasks[0]()
        return
    errors: list[StreamingError] = []
    async with trio.open_nursery() as nursery:

        async def run(task: Callable[[], Awaitable[None]]) -> None:
            try:
                await task()
            except StreamingError as error:
                errors.append(error)
                nursery.cancel_scope.cancel()

        for task in tasks:
            nursery.start_soon(run, task)
    if errors:
        raise errors[0]
