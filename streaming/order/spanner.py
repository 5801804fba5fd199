"""From a sample's id to its shard and its place in the shard, by binary search: no table of all samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Spanner"]


class Spanner:
    """`spanner[id]` → (shard, index in the shard); `find` does the same for an array of ids.

    `span_size` is accepted for the peer's sake: a binary search needs no spans.
    """

    def __init__(self, shard_sizes: NDArray[np.int64], span_size: int = 1024) -> None:
        self.shard_sizes = shard_sizes
        self.span_size = span_size
        self.shard_bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(shard_sizes, dtype=np.int64)])
        self.num_samples = int(self.shard_bounds[-1])

    def __getitem__(self, index: int) -> tuple[int, int]:
        if not 0 <= index < self.num_samples:
            raise IndexError(f"Invalid sample index `{index}`: 0 <= {index} < {self.num_samples}")
        shard = int(np.searchsorted(self.shard_bounds, index, side="right")) - 1
        return shard, int(index - self.shard_bounds[shard])

    def find(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Shards of `ids`, and their places in them; the ids must be in range."""
        shards = np.searchsorted(self.shard_bounds, ids, side="right") - 1
        return shards, ids - self.shard_bounds[shards]
