"""A cache without time, as simple as can be: does at once what the planner says, and counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mdsfs.plan.planner import Link, Planner
from mdsfs.plan.shape import Shape
from mdsfs.plan.track import prepare

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mdsfs.plan.state import Fetch

__all__ = ["Cache", "shape_of"]

JOB = "job"


def shape_of(shards: int, samples: int, size: int, *, whole: bool = False) -> Shape:
    """Shards alike, of `samples` samples of `size` bytes."""
    sizes = np.full(shards, samples * size, np.int64)
    return Shape(np.arange(shards + 1, dtype=np.int64) * samples, sizes, sizes, np.full(shards, whole))


class Cache:
    """One dataset, one planner, sizes that are all known; a shard's part is counted in samples."""

    def __init__(self, shape: Shape, capacity: int, link: Link | None = None) -> None:
        self.shape, self.capacity = shape, capacity
        self.planner = Planner(capacity, link or Link(8 * int(shape.sizes[0] // shape.first[1]), 1.0, 0.0))
        self.planner.add_dataset(0, shape)
        self.sample_size = int(shape.sizes[0] // shape.first[1])
        self.here: set[int] = set()
        self.fetched = 0
        self.heads = 0
        self.sooner = 0
        """Bytes that were taken away for something that is read later."""

    def learn(self, epoch: int, order: NDArray[np.int64], job: str = JOB) -> None:
        """The order of an epoch."""
        streams = {0: [(0, 0, self.shape.samples)]}
        self.planner.add_epoch(job, streams, epoch, prepare(order, streams, {0: self.shape}))
        self.tell_all()

    def tell_all(self) -> None:
        """What is here, for units that may be other ones than before."""
        for sample in self.here:
            self.planner.arrived(0, sample, sample + 1)
        for shard in range(self.shape.shards):
            self._holds(shard)

    @property
    def used(self) -> int:
        """Bytes."""
        return len(self.here) * self.sample_size

    def run(self) -> None:
        """Fetch what the planner wants."""
        while fetches := self.planner.fetches(self.capacity - self.used, 8 * self.sample_size):
            for fetch in fetches:
                self._fetch(fetch)
        assert self.used <= self.capacity

    def _fetch(self, fetch: Fetch) -> None:
        if fetch.kind == "head":
            self.heads += 1
            self.planner.head_arrived(0, fetch.shard)
            self.planner.ended(fetch, again=False)
            return
        for sample in range(fetch.first, fetch.stop):
            if sample not in self.here:
                if not self.make_room(fetch.distance):
                    self.planner.ended(fetch, again=True)
                    return
                self.take(sample)
        self.planner.ended(fetch, again=False)

    def take(self, sample: int) -> None:
        """Fetch one sample."""
        self.fetched += self.sample_size
        self.here.add(sample)
        self.planner.arrived(0, sample, sample + 1)
        self._holds(int(self.shape.shard_of(np.array([sample]))[0]))

    def make_room(self, distance: int) -> bool:
        """Room for one sample."""
        while self.used + self.sample_size > self.capacity:
            unit = next(self.planner.victims(distance), None)
            if unit is None:
                return False
            self.sooner += unit.distance <= distance
            sample = unit.sample if unit.sample is not None else self._last_of(unit.shard)
            self.here.remove(sample)
            self.planner.gone(0, sample, sample + 1, self.sample_size)
            self._holds(unit.shard)
        return True

    def read(self, samples: NDArray[np.int64]) -> None:
        """A reader reads these: what is absent is fetched, or passes by."""
        for sample in samples.tolist():
            if sample >= 0 and sample not in self.here:
                if self.make_room(-1):
                    self.take(sample)
                else:
                    self.fetched += self.sample_size

    def epoch(self, number: int, order: NDArray[np.int64], job: str = JOB) -> int:
        """All workers read their batches in turn; bytes fetched meanwhile."""
        before = self.fetched
        ranks, workers, batches, _ = order.shape
        for batch in range(batches):
            for worker in range(workers):
                for rank in range(ranks):
                    self.planner.moved(job, rank, worker, number, batch)
                    self.run()
                    self.read(order[rank, worker, batch])
        for rank in range(ranks):
            for worker in range(workers):
                self.planner.moved(job, rank, worker, number, batches)
        return self.fetched - before

    def _last_of(self, shard: int) -> int:
        return max(each for each in range(*self.shape.first[shard : shard + 2].tolist()) if each in self.here)

    def _holds(self, shard: int) -> None:
        first, stop = self.shape.first[shard : shard + 2].tolist()
        held = sum(each in self.here for each in range(first, stop)) * self.sample_size
        self.planner.holds(0, shard, held)
