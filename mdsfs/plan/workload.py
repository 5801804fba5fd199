"""What one host of a run reads: a dataset, an order over a world, and the share of it that is simulated.

All ranks of a host go on together, so they are one reader of larger batches here: that changes neither the samples of
a step nor the order of the steps. A run that is too long to be replayed sample by sample is thinned: of all shards
some are kept with all their samples, and cache, bandwidth and fetchers shrink by the same share (spatial sampling:
reuse distances, time and neighbourhood within a shard stay as they are).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from streaming.order import World, rank_order

from .bounds import kept_units
from .shape import Shape

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from streaming.order import OrderSpec

__all__ = ["MOST_SAMPLES", "Stored", "Workload"]

# A fetch of one sample costs some hundred microseconds to simulate: an epoch of these takes about ten seconds.
MOST_SAMPLES = 100_000
# Below so many shards one that is on its way is too large a part of the cache, and the live window is left to chance.
LEAST_SHARDS = 256


@dataclass(frozen=True, slots=True)
class Stored:
    """How the objects can be fetched, beside what the shape says."""

    frame: int = 0
    """Bytes, as shown, of a frame of seekable zstd; 0 where objects are not made of frames."""
    index: int = 0
    """Bytes of index and tables, which are in the cache for good."""


@dataclass(frozen=True, eq=False, slots=True)
class Workload:
    """One host's reading. `share`: of the dataset's bytes, what `shape` and `order` still have."""

    shape: Shape
    stored: Stored
    spec: OrderSpec
    world: World
    share: float = 1.0
    dataset: Shape | None = None
    """All of it, where `shape` is only a share."""
    kept: NDArray[np.bool_] | None = None
    """bool [shards of all of it]: which were kept; None: all."""

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Sample ids by step, int64 [batches of a rank][samples of a host's step], -1 for none."""
        return self.read(epoch)[0]

    def read(self, epoch: int) -> tuple[NDArray[np.int64], int, float]:
        """The order, the live window in it of the whole dataset (bytes as shown, to a step), and the share kept."""
        host = replace(self.spec, batch_size=self.spec.batch_size * self.world.ranks_per_node)
        found = rank_order(host, World(self.world.num_nodes, 1, 1, 0), epoch)[0]
        kept = self._thinned(found)
        return kept, self._window(found), int((kept >= 0).sum()) / max(int((found >= 0).sum()), 1)

    def _window(self, order: NDArray[np.int64]) -> int:
        dataset = self.dataset or self.shape
        first, last = np.full(dataset.shards, -1, np.int64), np.full(dataset.shards, -1, np.int64)
        for at, piece in _pieces(order):
            rows, columns = np.nonzero(piece >= 0)
            shards, steps = dataset.shard_of(piece[rows, columns]), rows + at
            last[shards] = steps
            fresh = np.full(dataset.shards, -1, np.int64)
            fresh[shards[::-1]] = steps[::-1]
            first = np.where(first < 0, fresh, first)
        used = first >= 0
        change = np.zeros(len(order) + 1, np.int64)
        np.add.at(change, first[used], dataset.sizes[used])
        np.subtract.at(change, last[used] + 1, dataset.sizes[used])
        return int(np.cumsum(change).max(initial=0))

    def thinned(self, most: int = MOST_SAMPLES) -> Workload:
        """With about `most` samples an epoch, or itself where it has no more."""
        samples = -(-self.spec.epoch_size // self.world.num_nodes)
        if samples <= most or self.shape.shards <= LEAST_SHARDS:
            return self
        kept = kept_units(self.shape.shards, max(most / samples, LEAST_SHARDS / self.shape.shards))
        counts = np.diff(self.shape.first)[kept]
        shape = Shape(
            first=np.concatenate([[0], np.cumsum(counts)]),
            sizes=self.shape.sizes[kept],
            stored=self.shape.stored[kept],
            whole=self.shape.whole[kept],
        )
        share = int(shape.sizes.sum()) / max(int(self.shape.sizes.sum()), 1)
        return replace(self, shape=shape, share=share, dataset=self.shape, kept=kept)

    def _thinned(self, order: NDArray[np.int64]) -> NDArray[np.int64]:
        """Only what is in kept shards, by its new id; the steps stay, each as wide as the fullest."""
        if self.kept is None or self.dataset is None:
            return order
        begins = self.dataset.first
        new = np.full(self.dataset.shards, -1, np.int64)
        new[self.kept] = self.shape.first[:-1]
        rows, ids = [], []
        for at, piece in _pieces(order):
            shards = self.dataset.shard_of(piece)  # of -1 the last one, which is then left out
            wanted = (piece >= 0) & self.kept[shards]
            rows.append(np.nonzero(wanted)[0] + at)
            ids.append(new[shards[wanted]] + piece[wanted] - begins[shards[wanted]])
        row, found = np.concatenate(rows), np.concatenate(ids)
        counts = np.bincount(row, minlength=len(order))
        thin = np.full((len(order), max(int(counts.max(initial=0)), 1)), -1, np.int64)
        thin[row, np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)] = found
        return thin


def _pieces(order: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """(first step, steps): so large that temporary memory stays small beside the order."""
    step = max(1, (1 << 22) // max(order.shape[1], 1))
    for at in range(0, len(order), step):
        yield at, order[at : at + step]
