"""One epoch of one job as this host reads it: a single sequence of batches, merged over ranks and workers.

Batch k of a rank is read by its worker k % W, as that worker's batch k // W, and ranks go on together: so the sequence
takes turns between ranks, batch by batch. A *slot* is one batch of one rank in it, a *position* one sample.

    slot = (batch · W + worker) · R + rank        position = slot · batch size + place in the batch
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Epoch", "Stream", "Uses", "uses_of"]

# An id and a position share one 64-bit number while they are sorted.
_POSITION_BITS = 32
_POSITION_MASK = (1 << _POSITION_BITS) - 1
# Ids are copied out of the order in pieces of about so many: temporary memory stays small beside the order's own.
_PIECE = 1 << 20

Stream = tuple[int, int, int]
"""A part of a job's ids: which dataset, id of its first sample in the job's order, how many samples."""


class Epoch:
    """The order of one epoch: int64 [ranks][workers][batches][batch size], ids of the job's mix, -1 for none."""

    def __init__(self, order: NDArray[np.int64]) -> None:
        """Raises ValueError for an array of another shape or type, or of more than 2³² positions."""
        if order.ndim != 4 or order.dtype != np.int64:
            raise ValueError(f"order: expected int64 of four dimensions, got {order.dtype} of {order.ndim}")
        if order.size > _POSITION_MASK:
            raise ValueError(f"order: expected at most 2**32 samples, got {order.size}")
        self.order = order
        self.ranks, self.workers, self.batches, self.size = (int(each) for each in order.shape)
        self.slots: int = self.ranks * self.workers * self.batches
        self.positions: int = self.slots * self.size
        self._merged = order.transpose(2, 1, 0, 3)  # [batch][worker][rank][place]: a view, in order of slots

    def __repr__(self) -> str:
        return f"Epoch({self.ranks} ranks, {self.workers} workers, {self.batches} batches of {self.size})"

    def slot(self, rank: int, worker: int, batch: int) -> int:
        """Where in the sequence a worker's batch is."""
        return (batch * self.workers + worker) * self.ranks + rank

    def ids(self, first: int, stop: int) -> NDArray[np.int64]:
        """Ids of the slots `first:stop`, int64 [(stop - first) · batch size], a copy."""
        row = self.ranks * self.workers
        low, high = first // row, -(-stop // row)
        found = self._merged[low:high].reshape(-1)
        return found[(first - low * row) * self.size : (stop - low * row) * self.size].copy()

    def reader_of(self, slots: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """(rank, worker, batch) of slots."""
        steps, ranks = np.divmod(slots, max(self.ranks, 1))
        batches, workers = np.divmod(steps, max(self.workers, 1))
        return ranks, workers, batches


class Uses:
    """At which positions of an epoch the samples of one dataset are read: sorted by sample, then by position."""

    def __init__(self, samples: NDArray[np.uint32], at: NDArray[np.uint32], first: NDArray[np.int64]) -> None:
        """samples, at: uint32 [uses]; first: as in `Shape`."""
        self.samples = samples
        self.at = at
        self.starts: NDArray[np.int64] = np.searchsorted(samples, first.astype(np.uint64)).astype(np.int64)
        """int64 [shards + 1]: where in `samples` and `at` each shard begins."""
        self.distinct = int(np.count_nonzero(samples[1:] != samples[:-1])) + bool(len(samples))

    def __repr__(self) -> str:
        return f"Uses({len(self.samples)} of {self.distinct} samples)"

    @property
    def touched(self) -> NDArray[np.int64]:
        """The shards that are read from."""
        return np.flatnonzero(np.diff(self.starts))

    def of_shard(self, shard: int) -> NDArray[np.uint32]:
        """Positions at which something of the shard is read, in no order."""
        return self.at[self.starts[shard] : self.starts[shard + 1]]

    def firsts(self) -> NDArray[np.bool_]:
        """bool [uses]: whether it is the first one of its sample."""
        first = np.ones(len(self.samples), np.bool_)
        first[1:] = self.samples[1:] != self.samples[:-1]
        return first

    def ends(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """(shards that are read from, first position, last position of each)."""
        touched = self.touched
        if not len(touched):
            return touched, np.empty(0, np.int64), np.empty(0, np.int64)
        begins = self.starts[touched]
        first = np.minimum.reduceat(self.at, begins).astype(np.int64)
        return touched, first, np.maximum.reduceat(self.at, begins).astype(np.int64)


def uses_of(epoch: Epoch, streams: Sequence[Stream], first: NDArray[np.int64]) -> Uses:
    """The uses of one dataset's samples; `streams`: its parts of the job's ids (the same dataset may be several).

    O(n log n) in the epoch's samples: for a thread. Ids outside every stream are passed over.
    """
    samples = int(first[-1])
    found: list[NDArray[np.int64]] = []
    step = max(1, _PIECE // max(epoch.size, 1))
    for begin in range(0, epoch.slots, step):
        ids = epoch.ids(begin, min(begin + step, epoch.slots))
        for _, low, count in streams:
            own = ids - low
            places = np.flatnonzero((own >= 0) & (own < min(count, samples)))
            found.append((own[places] << _POSITION_BITS) | (places + begin * epoch.size))
    keys = np.concatenate(found) if found else np.empty(0, np.int64)
    found.clear()
    keys.sort()
    return Uses((keys >> _POSITION_BITS).astype(np.uint32), (keys & _POSITION_MASK).astype(np.uint32), first)
