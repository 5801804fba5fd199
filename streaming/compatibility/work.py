"""The order of an epoch from a dataset object's public attributes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from streaming.order import OrderSpec, StreamSpec, epoch_order

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from streaming.order import World

__all__ = ["generate_work"]


def generate_work(
    batching_method: str, dataset: Any, world: World, epoch: int, sample_in_epoch: int
) -> NDArray[np.int64]:
    """Sample ids as int64 [nodes][ranks of a node][workers of a rank][batches of a worker][batch size], -1 for none.

    `sample_in_epoch` samples of the epoch, counted over the world, are behind us. KeyError for an unknown method.
    """
    if dataset.num_canonical_nodes is None:
        raise RuntimeError("`num_canonical_nodes` can never be None. Provide a positive integer.")
    if dataset.shuffle and not isinstance(dataset.shuffle_block_size, int):
        raise TypeError(
            f"Dataset `shuffle_block_size` must be an integer. Got {type(dataset.shuffle_block_size)} instead."
        )
    spec = OrderSpec(
        streams=_streams(dataset),
        batch_size=dataset.batch_size,
        canonical_nodes=dataset.num_canonical_nodes,
        seed=dataset.shuffle_seed,
        shuffle=dataset.shuffle,
        shuffle_algo=dataset.shuffle_algo,
        block_size=dataset.shuffle_block_size or OrderSpec.default_block_size(dataset.num_canonical_nodes),
        partition_algo=dataset.partition_algo,
        batching_method=batching_method,
        sampling_method=dataset.sampling_method,
        sampling_granularity=dataset.sampling_granularity,
        initial_nodes=dataset.initial_physical_nodes,
    )
    return epoch_order(spec, world, epoch, sample_in_epoch)


def _streams(dataset: Any) -> tuple[StreamSpec, ...]:
    sizes = np.asarray(dataset.samples_per_shard, np.int64)
    found = []
    for number, stream in enumerate(dataset.streams):
        first = int(dataset.shard_offset_per_stream[number])
        last = first + int(dataset.shards_per_stream[number])
        found.append(StreamSpec(sizes[first:last], int(stream.choose), float(stream.proportion)))
    return tuple(found)
