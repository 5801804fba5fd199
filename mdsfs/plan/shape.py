"""What the plan must know of a dataset: how many samples are in each shard, and what a shard takes."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from streaming.mds.layout import head_size

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Shape"]


@dataclass(frozen=True, eq=False)
class Shape:
    """One dataset. `shards` stands for the number of shards in the shapes of the arrays."""

    first: NDArray[np.int64]
    """int64 [shards + 1]: id, in the dataset, of each shard's first sample; the last is the number of samples."""
    sizes: NDArray[np.int64]
    """int64 [shards]: bytes as shown, which is what a shard takes in the cache."""
    stored: NDArray[np.int64]
    """int64 [shards]: bytes of the stored object, which is what fetching all of it costs."""
    whole: NDArray[np.bool_]
    """bool [shards]: the object can only be fetched whole, from its start."""

    @property
    def shards(self) -> int:
        """How many."""
        return len(self.sizes)

    @property
    def samples(self) -> int:
        """In all shards."""
        return int(self.first[-1])

    @functools.cached_property
    def sample_bytes(self) -> float:
        """Bytes of a sample as shown, on average."""
        return int(self.sizes.sum()) / max(self.samples, 1)

    def head_bytes(self, shard: int) -> int:
        """Bytes of a shard's table of offsets, without which its samples can't be found."""
        return min(head_size(int(self.first[shard + 1] - self.first[shard])), int(self.sizes[shard]))

    def shard_of(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64: the shard of each sample id of the dataset."""
        return np.searchsorted(self.first, samples, side="right") - 1
