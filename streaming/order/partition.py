"""Which positions of the epoch go to which node, rank, worker and batch.

The epoch is laid out as a matrix: a row a canonical node, each row consecutive ids, rows one short repeating an id.
Read column by column it is one sequence, the same whatever the number of physical nodes; node p takes positions
≡ p, its ranks take turns, and batches go round the workers. Since every step is arithmetic, one rank's share is
computed from its positions alone, without the matrix.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Shape", "get_partitions", "partition_rank", "traversal"]

ALGORITHMS = ("orig", "relaxed")


@dataclass(frozen=True)
class Shape:
    """What a partition depends on."""

    algo: str
    samples: int
    canonical_nodes: int
    nodes: int
    ranks: int  # of a node
    workers: int  # of a rank
    batch_size: int
    drop: int = 0
    initial_nodes: int | None = None


def get_partitions(
    algo: str,
    num_samples: int,
    num_canonical_nodes: int,
    num_physical_nodes: int,
    ranks_per_node: int,
    workers_per_rank: int,
    batch_size: int = 1,
    drop_first: int = 0,
    initial_physical_nodes: int | None = None,
) -> NDArray[np.int64]:
    """Positions as int64 [nodes][ranks of a node][workers of a rank][batches of a worker][batch size], -1 for none."""
    shape = Shape(
        algo,
        num_samples,
        num_canonical_nodes,
        num_physical_nodes,
        ranks_per_node,
        workers_per_rank,
        batch_size,
        drop_first,
        initial_physical_nodes,
    )
    _check(shape)
    return _relaxed(shape) if _reshaped(shape) else _orig(shape)


def partition_rank(shape: Shape, node: int, rank: int) -> NDArray[np.int64]:
    """One rank's part of `get_partitions`, [workers][batches][batch size], in memory of its own size where possible."""
    _check(shape)
    if _reshaped(shape):
        return np.array(_relaxed(shape)[node, rank])
    return _share(shape, _Layout(shape), node, rank)


def traversal(partition: NDArray[np.int64]) -> NDArray[np.int64]:
    """A partition flat, in the order in which the whole world sees it: batch by batch, within one rank by rank."""
    return partition.transpose(3, 2, 0, 1, 4).reshape(-1)


def _check(shape: Shape) -> None:
    if shape.algo not in ALGORITHMS:
        raise KeyError(shape.algo)
    world = shape.nodes * shape.ranks
    if shape.samples + world - shape.samples % world < shape.drop:
        raise ValueError(f"Resuming further into the dataset ({shape.drop}) than it has samples ({shape.samples})")


def _reshaped(shape: Shape) -> bool:
    small, large = sorted((shape.nodes, shape.canonical_nodes))
    return shape.algo == "relaxed" and shape.initial_nodes is not None and large % small != 0


def _relaxed(shape: Shape) -> NDArray[np.int64]:
    """The partition of the nodes of the run's start, dealt again to those of now."""
    assert shape.initial_nodes is not None
    batch = shape.nodes * shape.ranks * shape.batch_size
    devices = shape.initial_nodes * shape.ranks
    if batch % devices:
        raise ValueError(
            f"A global batch size of {batch} is not evenly divisible by the initial total number of devices of "
            f"{devices}. Make sure that when using the `relaxed` partitioning algorithm, the global batch size does "
            "not change during resumption of training."
        )
    first = Shape(
        "orig",
        shape.samples,
        shape.canonical_nodes,
        shape.initial_nodes,
        shape.ranks,
        shape.workers,
        batch // devices,
        shape.drop,
    )
    flat = traversal(_orig(first))
    dealt = flat.reshape(-1, shape.workers, shape.nodes, shape.ranks, shape.batch_size)
    return dealt.transpose(2, 3, 1, 0, 4)


def _orig(shape: Shape) -> NDArray[np.int64]:
    layout = _Layout(shape)
    if shape.nodes * shape.ranks == 1:
        return _share(shape, layout, 0, 0)[None, None]
    return np.array([[_share(shape, layout, node, rank) for rank in range(shape.ranks)] for node in range(shape.nodes)])


class _Layout:
    """The matrix of ids, by its rules: `ids(positions)` says what stands at places of its column-by-column reading."""

    def __init__(self, shape: Shape) -> None:
        rows, nodes = shape.canonical_nodes, shape.nodes
        if max(rows, nodes) % min(rows, nodes):
            raise ValueError(
                "Either canonical or physical nodes must be evenly divisible by the other, otherwise striping slices "
                "of shards over nodes may lead to each node downloading all shards"
            )
        self.samples = shape.samples
        self.rows = rows
        self.width = -(-shape.samples // rows)
        ratio = nodes // rows if rows < nodes else 1
        self.padding = -self.width % ratio
        self.columns = self.width + self.padding
        self.regular = shape.samples > rows or (shape.samples == rows and rows >= nodes)
        bounds = np.array([row * shape.samples // rows for row in range(rows + 1)], np.int64)
        self.starts = bounds[:-1]
        self.short = (np.diff(bounds) < self.width).astype(np.int64)
        if not self.regular:
            warnings.warn(
                f"Trying to partition {shape.samples} samples over {rows} canonical nodes. This will result in many "
                "samples being repeated, and depending on your batching method, batches being completely dropped. "
                "Check if your dataset has the expected number of samples, and consider decreasing the number of "
                "canonical nodes.",
                stacklevel=2,
            )
        elif self.padding:
            self.sources = self._padding_sources(ratio)

    def _padding_sources(self, ratio: int) -> NDArray[np.int64]:
        """Columns that the padding's columns repeat; a slice from the row's end, cut off at its beginning."""
        low = max(self.columns - 2 * self.padding - ratio + 1, 0)
        high = max(self.columns - self.padding - ratio + 1, 0)
        if high - low not in (1, self.padding):
            raise ValueError(
                f"{self.samples} samples are too few for {self.rows} canonical nodes on {ratio} times as many nodes"
            )
        return np.resize(np.arange(low, high, dtype=np.int64), self.padding)

    def ids(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Ids at `positions`; may use the argument's memory."""
        if self.regular and self.rows == 1:
            column, row, ids = positions, None, positions
        else:
            column, row = np.divmod(positions, self.rows)
            if not self.regular:
                return (row * self.columns + column) % self.samples
            ids = column + self.starts[row]
            last = np.flatnonzero(column == self.width - 1)
            ids[last] -= self.short[row[last]]
        if self.padding:
            extra = np.flatnonzero(column >= self.width)
            sources = self.sources[column[extra] - self.width]
            ids[extra] = sources if row is None else sources + self.starts[row[extra]]
        return ids


def _share(shape: Shape, layout: _Layout, node: int, rank: int) -> NDArray[np.int64]:
    drop = shape.drop - shape.drop % shape.nodes
    length = max(layout.rows * layout.columns - drop, 0) // shape.nodes  # of this node's sequence
    count = -(-length // shape.ranks)
    step = shape.nodes * shape.ranks
    first = drop + node + shape.nodes * rank
    rounds = shape.workers * shape.batch_size
    share = np.full(-(-count // rounds) * rounds, -1, np.int64)
    if count:
        positions = np.arange(first, first + step * count, step, dtype=np.int64)
        beyond = rank + shape.ranks * (count - 1) - length  # the last turn may find the sequence at its end
        if beyond >= 0:
            positions[-1] = drop + node + shape.nodes * _repeated(shape.ranks, length, beyond)
        share[:count] = layout.ids(positions)
    return share.reshape(-1, shape.workers, shape.batch_size).transpose(1, 0, 2)


def _repeated(ranks: int, length: int, beyond: int) -> int:
    """Which entry of a node's sequence stands `beyond` its end, where ranks without a sample repeat earlier ones."""
    missing = -length % ranks
    if ranks + missing - 1 <= length:
        return length - ranks - missing + 1 + beyond
    if beyond == 0:
        warnings.warn(
            f"Attempting to partition {length} samples per physical node over {ranks} gpus. This will result in many "
            "samples being repeated, and depending on your batching method, batches being completely dropped. Check "
            "if your dataset has the expected number of samples.",
            stacklevel=2,
        )
    return beyond % length
