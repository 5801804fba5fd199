"""An epoch's order: for the whole world, or for one rank of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from streaming.order.batching import METHODS, random_of_ranks

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from streaming.order.spec import OrderSpec
    from streaming.order.world import World

__all__ = ["epoch_length", "epoch_order", "rank_order", "ranks_order"]


def epoch_length(spec: OrderSpec, world: World) -> int:
    """`len(dataset)`: samples that each rank sees in an epoch; the world is the one after replication."""
    return -(-spec.epoch_size // world.num_ranks)


def epoch_order(spec: OrderSpec, world: World, epoch: int, drop: int = 0) -> NDArray[np.int64]:
    """Sample ids as int64 [nodes][ranks of a node][workers of a rank][batches of a worker][batch size], -1 for none.

    `drop` samples of the epoch, counted over the world, are behind us. Of `world` only the counts matter.
    """
    return METHODS[spec.batching_method](spec, world, epoch, drop)


def rank_order(spec: OrderSpec, world: World, epoch: int, drop: int = 0) -> NDArray[np.int64]:
    """The part of `epoch_order` that `world`'s own rank reads: [workers][batches of a worker][batch size]."""
    return next(ranks_order(spec, world, epoch, drop, [world.rank]))


def ranks_order(
    spec: OrderSpec, world: World, epoch: int, drop: int, ranks: Iterable[int]
) -> Iterator[NDArray[np.int64]]:
    """`rank_order` of several ranks, one after the other, at the cost of one. Of `world` only the counts matter."""
    if spec.batching_method == "random":
        yield from random_of_ranks(spec, world, epoch, drop, ranks)
        return
    found = epoch_order(spec, world, epoch, drop)
    for rank in ranks:
        yield np.array(found[divmod(rank, world.ranks_per_node)])
