"""What `--order` says: the order in which readers that cannot say it themselves will read."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from streaming.engine.hint import Hint, HintedStream, HintWorld, order_of
from streaming.order.batching import METHODS
from streaming.order.partition import ALGORITHMS as PARTITIONS
from streaming.order.shuffles import ALGORITHMS as SHUFFLES
from streaming.order.spec import OrderSpec, StreamSpec
from streaming.order.weights import Weight, weigh

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["OrderOptions", "parse_order"]

# The names that mosaicml-streaming gives its arguments are understood as well.
_LONG_NAMES = {
    "shuffle_algo": "algo",
    "shuffle_seed": "seed",
    "shuffle_block_size": "block_size",
    "num_canonical_nodes": "canonical_nodes",
    "partition_algo": "partition",
    "batching_method": "batching",
    "sampling_method": "sampling",
    "sampling_granularity": "granularity",
    "num_workers": "workers",
}
_CHOICES: dict[str, Sequence[str]] = {
    "algo": tuple(SHUFFLES),
    "partition": PARTITIONS,
    "batching": tuple(METHODS),
    "sampling": ("balanced", "fixed"),
}
_FROM_ZERO = ("seed", "node", "epoch")
_YES, _NO = ("true", "yes", "1"), ("false", "no", "0")


@dataclass(frozen=True, slots=True)
class OrderOptions:
    """The reader's arguments, and its place among all nodes; defaults are the reader's own."""

    batch_size: int
    shuffle: bool = False
    algo: str = "py1e"
    seed: int = 9176
    block_size: int | None = None
    canonical_nodes: int | None = None
    partition: str = "relaxed"
    batching: str = "random"
    sampling: str = "balanced"
    granularity: int = 1
    epoch_size: int | None = None
    nodes: int = 1
    node: int = 0
    ranks: int = 1
    """Of a node."""
    workers: int = 1
    """Of a rank."""
    epoch: int = 0
    """Where looking for the readers begins."""
    dataset: str = ""
    """Folder of the dataset below the mountpoint."""

    def hint(self, job: str, number: int, shard_sizes: NDArray[np.int64]) -> Hint:
        """What the engine is told: `number` is the connection's of the dataset. Raises ValueError."""
        samples = np.array([int(shard_sizes.sum())], np.int64)
        drawn = weigh([Weight()], samples, self.epoch_size, self.seed)
        canonical = self.canonical_nodes or OrderSpec.default_canonical_nodes(self.algo, self.nodes)
        stream = StreamSpec(shard_sizes, int(drawn.choose[0]), float(drawn.proportion[0]))
        spec = OrderSpec(
            (stream,),
            batch_size=self.batch_size,
            canonical_nodes=canonical,
            seed=self.seed,
            shuffle=self.shuffle,
            shuffle_algo=self.algo,
            block_size=self.block_size or OrderSpec.default_block_size(canonical),
            partition_algo=self.partition,
            batching_method=self.batching,
            sampling_method=self.sampling,
            sampling_granularity=self.granularity,
        )
        world = HintWorld(self.nodes, self.ranks, self.workers, self.node * self.ranks, self.ranks)
        hinted = (HintedStream(stream.choose, stream.proportion, number),)
        return Hint(job, hinted, world, order_of(spec))


def parse_order(text: str) -> OrderOptions:
    """The options of `shuffle=true,algo=py1e,batch_size=32,…`. Raises ValueError that says what is wrong."""
    known = {field.name: field for field in dataclasses.fields(OrderOptions)}
    values: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = part.partition("=")
        name = _LONG_NAMES.get(key.strip().replace("-", "_"), key.strip().replace("-", "_"))
        if name not in known:
            raise ValueError(f"no such part of an order: {key!r}: expected some of {', '.join(known)}")
        values[name] = _value(name, value.strip() if equals else "true")
    if "batch_size" not in values:
        raise ValueError("an order needs batch_size=…: the same as the reader's")
    found = OrderOptions(**values)
    if found.node >= found.nodes:
        raise ValueError(f"node={found.node} of nodes={found.nodes}: nodes count from 0")
    return found


def _value(name: str, value: str) -> bool | int | str:
    if name == "shuffle":
        if value.lower() not in (*_YES, *_NO):
            raise ValueError(f"shuffle: expected true or false, got {value!r}")
        return value.lower() in _YES
    if name == "dataset":
        return value.strip("/")
    if name in _CHOICES:
        if value not in _CHOICES[name]:
            raise ValueError(f"{name}: expected one of {', '.join(_CHOICES[name])}, got {value!r}")
        return value
    least = 0 if name in _FROM_ZERO else 1
    digits = value.replace("_", "")
    if not (digits.isascii() and digits.isdigit()) or not least <= int(digits) < 1 << 31:
        raise ValueError(f"{name}: expected a whole number from {least} on, got {value!r}")
    return int(digits)
