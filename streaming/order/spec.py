"""All that an order depends on, as one value: streams, seed, algorithms, sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from streaming.order.sampling import Draw, get_sampling, resample

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["OrderSpec", "StreamSpec"]


@dataclass(frozen=True, eq=False)
class StreamSpec:
    """A stream: samples of each of its shards (int64), how many an epoch draws, and its share of the epoch."""

    shard_sizes: NDArray[np.int64]
    choose: int
    proportion: float = 1.0


@dataclass(frozen=True, eq=False)
class OrderSpec:
    """All that the order depends on beside the world, the epoch and where the epoch is entered."""

    streams: tuple[StreamSpec, ...]
    batch_size: int
    canonical_nodes: int
    seed: int = 9176
    shuffle: bool = False
    shuffle_algo: str = "py1e"
    block_size: int = 4_000_000
    partition_algo: str = "relaxed"
    batching_method: str = "random"
    sampling_method: str = "balanced"
    sampling_granularity: int = 1
    initial_nodes: int | None = None  # of the run's start, when it is resumed

    @property
    def epoch_size(self) -> int:
        return sum(stream.choose for stream in self.streams)

    @property
    def changes_sampling(self) -> bool:
        """Whether granules and origins of batches differ from epoch to epoch."""
        return self.shuffle and self.sampling_method == "balanced"

    @staticmethod
    def default_canonical_nodes(shuffle_algo: str, nodes: int) -> int:
        return 64 * nodes if shuffle_algo in ("py1s", "py2s") else nodes

    @staticmethod
    def default_block_size(canonical_nodes: int) -> int:
        return max(4_000_000 // canonical_nodes, 1 << 18)

    def draw(self, epoch: int, number: int | None = None) -> Draw:
        """What the epoch draws from all streams, or from stream `number` alone: then from a fresh generator."""
        rng = np.random.default_rng(self.seed + epoch if self.sampling_method == "balanced" else self.seed)
        parts, first = [], 0
        for index, stream in enumerate(self.streams):
            sizes = stream.shard_sizes
            if number in (None, index):
                counts = get_sampling(
                    sizes, stream.choose, self.sampling_granularity, self.seed, epoch, self.changes_sampling
                )
                parts.append((sizes, counts, first))
            first += int(sizes.sum())
        return resample(parts, rng)
