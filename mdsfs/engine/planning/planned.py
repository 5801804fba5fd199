"""Between the plan, which knows samples and shards, and the cache, which knows blocks of files.

`PlannedPolicy` is the cache's policy where orders are known: it tells the planner what has come and gone, and turns the
units that may go into blocks. What no order covers goes first, least recently used; what is left over in the files of a
planned dataset (parts of samples, what somebody read out of order) goes last, if nothing of it is needed sooner.
"""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, ParamSpec

import numpy as np

from mdsfs.plan.calendar import UNKNOWN
from mdsfs.plan.offers import Offers
from mdsfs.plan.state import HERE
from streaming.engine.residency import BLOCK

from ..cache.policy import ANYTHING, Incoming, LeastRecentlyUsed, Victim

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from mdsfs.plan.planner import Planner, Unit

    from ..cache.dataset import Run
    from ..cache.ledger import Chunk, FileKey
    from ..cache.policy import Change
    from .planneddataset import PlannedDataset

__all__ = ["PlannedPolicy", "advice"]

log = logging.getLogger(__name__)

P = ParamSpec("P")

# For what nobody waits for, so many units are offered at most: where all of them are in use, others will do later.
MOST_TRIED = 256


def advice(note: Callable[P, None]) -> Callable[P, None]:
    """A plan is advice: what is wrong with it goes to the log, and keeps no byte from a reader."""

    @functools.wraps(note)
    def noted(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            note(*args, **kwargs)
        except Exception:
            log.exception("the plan has failed in %s", note.__name__)

    return noted


def _expanded(runs: list[tuple[int, int]]) -> NDArray[np.int64]:
    """Each number of these runs, once."""
    if len(runs) == 1:
        return np.arange(*runs[0], dtype=np.int64)
    return np.unique(np.concatenate([np.arange(first, stop, dtype=np.int64) for first, stop in runs]))


class PlannedPolicy:
    """See `Policy`."""

    def __init__(self, planner: Planner) -> None:
        self.planner = planner
        self.datasets: dict[int, PlannedDataset] = {}
        self.may_go: Callable[[int, int, Run], bool] = lambda dataset, file, run: True
        """Whether blocks of a file are held by nobody; asked before anything that costs more."""
        self._others = LeastRecentlyUsed()
        self._left_over = LeastRecentlyUsed()
        self._offers = Offers(planner)

    def __repr__(self) -> str:
        return f"PlannedPolicy({self._others}, {self.planner})"

    def plan(self, planned: PlannedDataset) -> None:
        """From now on the planner says what goes of this dataset."""
        number = planned.dataset.number
        self.datasets[number] = planned
        self.planner.add_dataset(number, planned.shape)
        self._others.move(number, self._left_over)

    def unplan(self, number: int) -> None:
        """Nobody has told of an order of this dataset any more."""
        if self.datasets.pop(number, None) is not None:
            self.planner.remove_dataset(number)
            self._left_over.move(number, self._others)

    def _of(self, dataset: int) -> LeastRecentlyUsed:
        return self._left_over if dataset in self.datasets else self._others

    # ---- what the cache tells ----------------------------------------------------------------------------------------

    def adopt(self, dataset: int, files: Iterable[int]) -> None:
        """See `Policy`."""
        self._of(dataset).adopt(dataset, files)

    def touch(self, chunk: Chunk) -> None:
        """See `Policy`."""
        self._of(chunk[0]).touch(chunk)

    def forget(self, chunk: Chunk) -> None:
        """See `Policy`."""
        self._of(chunk[0]).forget(chunk)

    def forget_file(self, key: FileKey) -> None:
        """See `Policy`."""
        self._of(key[0]).forget_file(key)

    def is_recent(self, chunk: Chunk) -> bool:
        """See `Policy`."""
        return self._of(chunk[0]).is_recent(chunk)

    @advice
    def arrived(self, runs: Sequence[Change]) -> None:
        """See `Policy`."""
        here: dict[int, list[tuple[int, int]]] = {}
        self._count(runs)
        for dataset, file, first, count in runs:
            planned = self.datasets.get(dataset.number)
            if planned is None or (shard := planned.shard_of(file)) < 0:
                continue
            if not planned.shape.whole[shard]:
                here.setdefault(dataset.number, []).extend(self._complete(planned, shard, file, (first, count)))
        for number, found in here.items():
            if found:
                self.planner.arrived_all(number, _expanded(found))

    def _count(self, runs: Sequence[Change]) -> None:
        """Tell the planner what it has now of the shards that these blocks are of."""
        for number, file in {(dataset.number, file) for dataset, file, _, _ in runs}:
            planned = self.datasets.get(number)
            if planned is not None and (shard := planned.shard_of(file)) >= 0:
                self.planner.holds(number, shard, planned.held(shard))

    def _complete(self, planned: PlannedDataset, shard: int, file: int, run: Run) -> Iterator[tuple[int, int]]:
        """Runs of samples of the dataset that are here, now that some blocks are."""
        dataset = planned.dataset
        if self.planner.dataset(dataset.number).heads[shard] != HERE and planned.offsets(shard) is not None:
            if not dataset.is_resident(file, 0, planned.shape.head_bytes(shard)):
                return
            self.planner.head_arrived(dataset.number, shard)
            # what came before its head did
            for each in dataset.stretches(file):
                yield from self._samples_of(planned, shard, file, each)
        else:
            yield from self._samples_of(planned, shard, file, run)

    def _samples_of(self, planned: PlannedDataset, shard: int, file: int, run: Run) -> Iterator[tuple[int, int]]:
        offsets = planned.offsets(shard)
        if offsets is None:
            return
        first, count = run
        low, high = planned.samples_in(offsets, first, count)

        def is_here(index: int) -> bool:
            start, stop = int(offsets[index]), int(offsets[index + 1])
            # the outer blocks may be there in part only
            inside = (first + 1) * BLOCK <= start and stop <= (first + count - 1) * BLOCK
            return inside or planned.dataset.is_here(file, start, stop, sample=True)

        while low < high and not is_here(low):
            low += 1
        while low < high and not is_here(high - 1):
            high -= 1
        if low < high:
            base = int(planned.shape.first[shard])
            yield base + low, base + high

    @advice
    def gone(self, runs: Sequence[Change]) -> None:
        """See `Policy`."""
        lost: dict[int, list[tuple[int, int]]] = {}
        sizes: dict[int, int] = {}
        self._count(runs)
        for dataset, file, first, count in runs:
            planned = self.datasets.get(dataset.number)
            if planned is None or (shard := planned.shard_of(file)) < 0:
                continue
            lost.setdefault(dataset.number, []).append(self._touched(planned, shard, (first, count)))
            sizes[dataset.number] = sizes.get(dataset.number, 0) + count * BLOCK
        for number, found in lost.items():
            self.planner.gone_all(number, _expanded(found), sizes[number])

    def _touched(self, planned: PlannedDataset, shard: int, run: Run) -> tuple[int, int]:
        """Samples of the dataset, from one to before another, that have something in blocks that are gone."""
        base = int(planned.shape.first[shard])
        if planned.shape.whole[shard]:
            return base, base
        offsets = planned.offsets(shard)
        if run[0] * BLOCK < planned.shape.head_bytes(shard):
            self.planner.head_gone(planned.dataset.number, shard)
            planned.forget(shard)
        if offsets is None:
            return base, int(planned.shape.first[shard + 1])
        low, high = planned.samples_in(offsets, *run)
        return base + low, base + high

    # ---- what the cache asks -----------------------------------------------------------------------------------------

    def victims(self, incoming: Incoming = ANYTHING) -> Iterator[Victim]:
        """See `Policy`."""
        yield from self._others.victims(incoming)
        if not self.datasets:
            return
        try:
            yield from self._planned_victims(incoming)
        except Exception:
            log.exception("the plan has failed in victims")
            yield from self._left_over.victims(incoming)

    def _planned_victims(self, incoming: Incoming) -> Iterator[Victim]:
        tries = MOST_TRIED if incoming.distance >= 0 else UNKNOWN
        for unit in self._offers.units(incoming.distance):
            planned = self.datasets[unit.dataset]
            if unit.sample is None:
                yield from self._chunks_of(planned, unit)
            elif (victim := self._sample(planned, unit)) is not None:
                yield victim
            tries -= 1
            if not tries:
                return
        for victim in self._left_over.victims(incoming):
            if self._soonest(victim) > incoming.distance:
                yield victim

    def _chunks_of(self, planned: PlannedDataset, unit: Unit) -> Iterator[Victim]:
        """A shard from its end on, as much of it as is needed."""
        dataset = planned.dataset
        for file in reversed(planned.files(unit.shard)):
            for index in reversed(range(-(-dataset.blocks(file) // dataset.grain(file)))):
                yield Victim(dataset.number, file, index)

    def _sample(self, planned: PlannedDataset, unit: Unit) -> Victim | None:
        """The blocks of a sample, without those that something needed sooner, hence not passed yet, lies on."""
        offsets = planned.offsets(unit.shard)
        if offsets is None or unit.sample is None:
            return None
        index = unit.sample - int(planned.shape.first[unit.shard])
        file = planned.files(unit.shard)[0]
        first, count = planned.run_of(offsets, index, index + 1)
        if not self.may_go(unit.dataset, file, (first, count)):
            return None
        end = first + count
        first = max(first, -(-planned.shape.head_bytes(unit.shard) // BLOCK))
        if first < end and self._is_needed(planned, unit, offsets, first):
            first += 1
        if first < end and self._is_needed(planned, unit, offsets, end - 1):
            end -= 1
        return Victim(unit.dataset, file, None, (first, end - first)) if first < end else None

    def _is_needed(self, planned: PlannedDataset, unit: Unit, offsets: NDArray[np.int64], block: int) -> bool:
        """Whether another sample on a block is here, and will not take the block along when it goes itself."""
        assert unit.sample is not None
        base = int(planned.shape.first[unit.shard])
        here = self.planner.dataset(unit.dataset).samples
        low = high = unit.sample - base
        while low and int(offsets[low]) > block * BLOCK:
            low -= 1
        while high < len(offsets) - 2 and int(offsets[high + 1]) < (block + 1) * BLOCK:
            high += 1
        near = range(base + low, base + high + 1)
        others = [each for each in near if each != unit.sample and here[each] == HERE]
        if planned.shape.sample_bytes > 2 * BLOCK:
            return bool(others)  # the neighbour's own blocks lie beside it
        return not all(self._offers.has_passed(unit.dataset, each) for each in others)

    def _soonest(self, victim: Victim) -> int:
        """How soon something of a chunk, or of a file, is read that is here."""
        planned = self.datasets[victim.dataset]
        shard = planned.shard_of(victim.file)
        if shard < 0:
            return UNKNOWN
        if victim.chunk is not None:
            run = planned.dataset.chunk_run(victim.file, victim.chunk)
            if not self.may_go(victim.dataset, victim.file, run):
                return -1
        offsets = planned.offsets(shard)
        if victim.chunk is None or offsets is None or planned.shape.whole[shard]:
            return self.planner.soonest_of_shard(victim.dataset, shard)
        first, count = planned.dataset.chunk_run(victim.file, victim.chunk)
        if first * BLOCK < planned.shape.head_bytes(shard):
            return self.planner.soonest_of_shard(victim.dataset, shard)
        base = int(planned.shape.first[shard])
        low, high = planned.samples_in(offsets, first, count)
        samples = np.arange(base + low, base + high)
        here = self.planner.dataset(victim.dataset).samples[samples] == HERE
        return self.planner.soonest(victim.dataset, samples[here])
