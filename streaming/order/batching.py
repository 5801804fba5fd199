"""The four ways to compose batches from streams.

`random` mixes all samples and enters an epoch at the very sample; the others build whole global batches first, each
by its rule about streams, and enter at a global batch. Samples that fill no batch are left out of the epoch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from streaming.order.partition import Shape, get_partitions, partition_rank, traversal
from streaming.order.sampling import gather
from streaming.order.shuffles import get_shuffle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from streaming.order.sampling import Draw
    from streaming.order.spec import OrderSpec
    from streaming.order.world import World

    Method = Callable[[OrderSpec, World, int, int], NDArray[np.int64]]

__all__ = ["METHODS", "random_of_ranks"]


def random(spec: OrderSpec, world: World, epoch: int, drop: int) -> NDArray[np.int64]:
    """Batches of samples from anywhere."""
    positions = get_partitions(
        spec.partition_algo,
        spec.epoch_size,
        spec.canonical_nodes,
        world.num_nodes,
        world.ranks_per_node,
        world.workers_per_rank,
        spec.batch_size,
        drop,
        spec.initial_nodes,
    )
    return _ids_at(spec, spec.draw(epoch), positions, epoch, spec.block_size)


def random_of_ranks(
    spec: OrderSpec, world: World, epoch: int, drop: int, ranks: Iterable[int]
) -> Iterator[NDArray[np.int64]]:
    """The parts of ranks of `random`, one after the other; the shuffle is made once."""
    shape = Shape(
        spec.partition_algo,
        spec.epoch_size,
        spec.canonical_nodes,
        world.num_nodes,
        world.ranks_per_node,
        world.workers_per_rank,
        spec.batch_size,
        drop,
        spec.initial_nodes,
    )
    draw: Draw | None = None
    table: NDArray[np.int64] | None = None
    for rank in ranks:
        positions = partition_rank(shape, *divmod(rank, world.ranks_per_node))
        if draw is None:  # after the first partition, which refuses what can't be dealt
            draw = spec.draw(epoch)
            table = _table(spec, draw, epoch, spec.block_size)
        yield draw.lookup(positions if table is None else gather(table, positions))


def per_stream(spec: OrderSpec, world: World, epoch: int, drop: int) -> NDArray[np.int64]:
    """Global batches, each of one stream."""
    rows = []
    for number in range(len(spec.streams)):
        part = _stream(spec, world, epoch, number, nodes=world.num_nodes, batch_size=spec.batch_size)
        whole = _whole_rows(traversal(part).reshape(-1, _global(spec, world)))
        if not len(whole):
            raise ValueError(
                f"Stream with index {number} does not have an adequate number of samples to construct a complete "
                "global batch. Training will occur without any samples from this stream."
            )
        rows.append(whole)
    return _dealt(spec, world, _mixed(rows, _rng(spec, epoch)), drop)


def stratified(spec: OrderSpec, world: World, epoch: int, drop: int) -> NDArray[np.int64]:
    """Global batches, each with the same number of samples of every stream."""
    sides = []
    for number, portion in enumerate(_portions(spec, _global(spec, world))):
        flat = traversal(_stream(spec, world, epoch, number, nodes=1, batch_size=1))
        rows = _padded(flat, -len(flat) % portion).reshape(-1, portion)
        sides.append((rows, len(_whole_rows(rows))))
    shortest = min(whole for _, whole in sides)
    return _dealt(spec, world, np.concatenate([rows[:shortest] for rows, _ in sides], axis=1), drop)


def device_per_stream(spec: OrderSpec, world: World, epoch: int, drop: int) -> NDArray[np.int64]:
    """Batches of a rank, each of one stream."""
    if spec.canonical_nodes % world.num_nodes:
        raise ValueError(
            f"batching_method 'device_per_stream' needs num_canonical_nodes ({spec.canonical_nodes}) divisible by "
            f"the number of nodes ({world.num_nodes})"
        )
    parts = [
        _stream(spec, world, epoch, number, nodes=spec.canonical_nodes, batch_size=1)
        for number in range(len(spec.streams))
    ]
    rng = _rng(spec, epoch)
    rows_of = spec.canonical_nodes // world.num_nodes
    nodes = []
    for node in range(world.num_nodes):
        rows = [
            _batches_of_node(part[node * rows_of : (node + 1) * rows_of], number, spec.batch_size)
            for number, part in enumerate(parts)
        ]
        nodes.append(rows)
    longest = max(sum(map(len, rows)) for rows in nodes)
    longest += world.num_ranks - longest % world.num_ranks  # a whole turn more when it divides: the order is fixed so
    mixed = [_mixed(rows, rng) for rows in nodes]
    level = [_padded(rows, (longest - len(rows)) * spec.batch_size) for rows in mixed]
    level = [flat.reshape(-1, spec.batch_size) for flat in level]
    return _dealt(spec, world, np.stack(level, axis=1).reshape(-1, _global(spec, world)), drop)


METHODS: dict[str, Method] = {
    "random": random,
    "stratified": stratified,
    "per_stream": per_stream,
    "device_per_stream": device_per_stream,
}


def _batches_of_node(part: NDArray[np.int64], number: int, batch_size: int) -> NDArray[np.int64]:
    flat = traversal(part)
    rows = _padded(flat, batch_size - len(flat) % batch_size).reshape(-1, batch_size)
    whole = _whole_rows(rows)
    if not len(whole):
        raise ValueError(
            f"Stream with index {number} does not have an adequate number of samples to construct even a single "
            f"device batch of size {batch_size}. Training will occur without any samples from this stream!"
        )
    return whole


def _ids_at(
    spec: OrderSpec, draw: Draw, positions: NDArray[np.int64], epoch: int, block_size: int
) -> NDArray[np.int64]:
    table = _table(spec, draw, epoch, block_size)
    return draw.lookup(positions if table is None else gather(table, positions))


def _table(spec: OrderSpec, draw: Draw, epoch: int, block_size: int) -> NDArray[np.int64] | None:
    """Which drawn sample stands at each position; None where they stand as they were drawn."""
    if not spec.shuffle:
        return None
    return get_shuffle(spec.shuffle_algo, draw.units, spec.canonical_nodes, spec.seed, epoch, block_size)


def _stream(
    spec: OrderSpec, world: World, epoch: int, number: int, *, nodes: int, batch_size: int
) -> NDArray[np.int64]:
    """One stream by itself, partitioned over `nodes`, with its share of the shuffle's block."""
    draw = spec.draw(epoch, number)
    positions = get_partitions(
        spec.partition_algo,
        draw.size,
        spec.canonical_nodes,
        nodes,
        world.ranks_per_node,
        world.workers_per_rank,
        batch_size,
        0,
        spec.initial_nodes,
    )
    block = int(spec.block_size * spec.streams[number].proportion)
    if spec.shuffle and not block and spec.batching_method == "device_per_stream":
        raise ValueError(
            f"Samples from stream {number} are not being used. Please either increase the `shuffle_block_size` from "
            f"{spec.block_size}, or increase the stream proportion from {spec.streams[number].proportion}."
        )
    return _ids_at(spec, draw, positions, epoch, block)


def _portions(spec: OrderSpec, batch: int) -> NDArray[np.int64]:
    """Samples of each stream in a global batch; what rounding leaves goes to the largest remainders."""
    shares = [stream.proportion for stream in spec.streams]
    portions = np.array([int(share * batch) for share in shares])
    missing = batch - int(portions.sum())
    if missing:
        portions[np.flip(np.argsort(batch * np.array(shares) - portions))[:missing]] += 1
    for number, portion in enumerate(portions):
        if portion <= 0:
            raise ValueError(
                f"Number of samples for stream {number} is {portion} because the portion of this stream in the global "
                f"batch, which is of size {batch}, is too low. Please increase the global batch size or increase the "
                f"proportion of total samples that come from stream {number}."
            )
    return portions


def _mixed(rows: Sequence[NDArray[np.int64]], rng: np.random.Generator) -> NDArray[np.int64]:
    """The rows of all streams, streams in random order, each stream's rows in their own."""
    origins = np.repeat(np.arange(len(rows)), [len(part) for part in rows])
    rng.shuffle(origins)
    mixed = np.empty((len(origins), rows[0].shape[1]), np.int64)
    for number, part in enumerate(rows):
        mixed[origins == number] = part
    return mixed


def _dealt(spec: OrderSpec, world: World, rows: NDArray[np.int64], drop: int) -> NDArray[np.int64]:
    """Global batches after `drop`, filled up to whole rounds of the workers and dealt to nodes, ranks and workers."""
    rows = rows[drop // _global(spec, world) :]
    flat = _padded(rows, -len(rows) % world.workers_per_rank * _global(spec, world))
    shape = (-1, world.workers_per_rank, world.num_nodes, world.ranks_per_node, spec.batch_size)
    return flat.reshape(shape).transpose(2, 3, 1, 0, 4)


def _whole_rows(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """As many of the first rows as there are rows without a gap."""
    return rows[: np.count_nonzero(rows.min(axis=1) >= 0)]


def _padded(values: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    return np.concatenate([values.reshape(-1), np.full(count, -1, np.int64)])


def _global(spec: OrderSpec, world: World) -> int:
    return spec.batch_size * world.num_ranks


def _rng(spec: OrderSpec, epoch: int) -> np.random.Generator:
    return np.random.default_rng(spec.seed + epoch if spec.changes_sampling else spec.seed)
