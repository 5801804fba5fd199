"""The order in which samples are seen: which ids, in which batches, on which node, rank and worker.

Everything here is a function from numbers and arrays to arrays, bit for bit what mosaicml-streaming 0.13.0 computes.
ORDER.md says how the parts follow each other and what may never change.
"""

from __future__ import annotations

from streaming.order.epoch import epoch_length, epoch_order, rank_order
from streaming.order.partition import get_partitions
from streaming.order.sampling import get_sampling, resample
from streaming.order.shuffles import get_shuffle
from streaming.order.spanner import Spanner
from streaming.order.spec import OrderSpec, StreamSpec
from streaming.order.weights import Drawn, Weight, weigh
from streaming.order.world import World

__all__ = [
    "Drawn",
    "OrderSpec",
    "Spanner",
    "StreamSpec",
    "Weight",
    "World",
    "epoch_length",
    "epoch_order",
    "get_partitions",
    "get_sampling",
    "get_shuffle",
    "rank_order",
    "resample",
    "weigh",
]
