"""Golden vectors: the order that a run with mosaicml-streaming saw is the one that we give."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from typing import Any

import numpy as np
import pytest

from streaming.order import (
    OrderSpec,
    StreamSpec,
    Weight,
    World,
    epoch_length,
    epoch_order,
    get_partitions,
    get_sampling,
    get_shuffle,
    rank_order,
    weigh,
)
from tests.order import vectors


def _digest(ids: Any) -> str:
    return sha256(np.asarray(ids, "<i8").tobytes()).hexdigest()[:16]


@pytest.mark.parametrize(("case", "expected"), vectors.SMALL)
def test_shuffles_of_eight_samples(case: tuple[list[int], int, int, int, int], expected: dict[str, str]) -> None:
    """Every algorithm, seeds, epochs and canonical nodes, id by id."""
    sizes, *rest = case
    found = {algo: "".join(map(str, get_shuffle(algo, np.array(sizes), *rest))) for algo in expected}
    assert found == expected


@pytest.mark.filterwarnings("ignore:Shuffle block size was smaller")
def test_shuffles_over_two_canonical_nodes() -> None:
    """A shard is cut where the second canonical node begins."""
    found = {algo: get_shuffle(algo, np.array([4, 4, 4]), 2, 1, 2, 6).tolist() for algo in vectors.TWELVE}
    assert found == vectors.TWELVE


@pytest.mark.filterwarnings("ignore:Shuffle block size was smaller")
@pytest.mark.parametrize("algo", vectors.ALGORITHMS)
def test_shuffles_of_uneven_and_of_many_shards(algo: str) -> None:
    """Uneven shards over three canonical nodes, and a million samples over eight."""
    uneven = get_shuffle(algo, np.array([7, 13, 1, 20, 9, 2, 2, 31]), 3, 42, 3, 16)
    million = get_shuffle(algo, np.full(1000, 1000), 8, 9176, 0, 262144)
    assert (_digest(uneven), _digest(million)) == (vectors.UNEVEN[algo], vectors.MILLION[algo])


@pytest.mark.filterwarnings("ignore:Trying to partition 3 samples over 4")
@pytest.mark.parametrize(("arguments", "expected"), vectors.PARTITIONS)
def test_partitions(arguments: tuple[Any, ...], expected: list[Any]) -> None:
    """Repeats, gaps, dropped samples and other nodes than at the start."""
    assert get_partitions(*arguments).tolist() == expected


@pytest.mark.parametrize(("arguments", "expected"), vectors.SAMPLINGS)
def test_sampling(arguments: tuple[int, int, int, int, bool], expected: list[int]) -> None:
    """Fractions of shards, granules, whole repeats."""
    assert get_sampling(np.array([5, 3, 4]), *arguments).tolist() == expected


ONE = OrderSpec((StreamSpec(np.array([5, 3]), 8),), batch_size=2, canonical_nodes=1, shuffle=True)


def _batches(spec: OrderSpec, world: World, epoch: int = 0, drop: int = 0) -> list[Any]:
    return rank_order(spec, world, epoch, drop).tolist()


def test_one_stream_over_epochs_workers_and_ranks() -> None:
    """The whole way with the defaults; workers take batches in turns, ranks take samples in turns."""
    assert _batches(ONE, World(1, 1, 1, 0)) == [[[2, 1], [6, 5], [4, 7], [3, 0]]]
    assert _batches(ONE, World(1, 1, 1, 0), epoch=1) == [[[7, 4], [3, 2], [1, 0], [5, 6]]]
    assert _batches(ONE, World(1, 1, 1, 0), drop=4) == [[[4, 7], [3, 0]]]
    assert _batches(ONE, World(1, 1, 2, 0)) == [[[2, 1], [4, 7]], [[6, 5], [3, 0]]]
    assert [_batches(ONE, World(1, 2, 1, rank)) for rank in (0, 1)] == [[[[2, 6], [4, 3]]], [[[1, 5], [7, 0]]]]


def test_two_canonical_nodes() -> None:
    """Two nodes read a canonical node each; one node reads both by turns."""
    two = replace(ONE, canonical_nodes=2)
    assert [_batches(two, World(2, 1, 1, rank)) for rank in (0, 1)] == [[[[7, 6], [5, 0]]], [[[3, 2], [1, 4]]]]
    assert _batches(two, World(1, 1, 1, 0)) == [[[7, 3], [6, 2], [5, 1], [0, 4]]]
    assert _batches(replace(two, shuffle=False), World(1, 1, 1, 0)) == [[[0, 4], [1, 5], [2, 6], [3, 7]]]


@pytest.mark.filterwarnings("ignore:Shuffle block size was smaller")
@pytest.mark.parametrize("method", vectors.TWO_STREAMS)
def test_two_streams(method: str) -> None:
    """Half of an epoch from each of two streams, by each batching method."""
    sizes = [np.array([5, 3]), np.array([4])]
    drawn = weigh([Weight(proportion=0.5)] * 2, np.array([8, 4]), 10, 9176)
    assert drawn.choose.tolist() == [5, 5]
    streams = tuple(StreamSpec(shards, 5, 0.5) for shards in sizes)
    spec = OrderSpec(streams, 2, 1, shuffle=True, block_size=16, batching_method=method)
    order = epoch_order(spec, World(1, 1, 1, 0), 0)
    assert order.reshape(-1, 2).tolist() == vectors.TWO_STREAMS[method]
    drawn_ids = [(draw.units.tolist(), draw.ids.tolist()) for draw in map(spec.draw, (0, 1)) if draw.ids is not None]
    assert drawn_ids == [
        ([2, 3, 4, 1], [3, 4, 5, 6, 7, 8, 9, 10, 11, 8]),
        ([3, 2, 4, 1], [1, 2, 3, 5, 6, 8, 9, 10, 11, 9]),
    ]


def test_weights() -> None:
    """Proportions round down and the rest goes to streams drawn by the seed; repeats and counts are taken as given."""
    samples = np.array([8, 4])
    assert weigh([Weight(proportion=1), Weight(proportion=2)], samples, 10, 9176).choose.tolist() == [3, 7]
    absolute = weigh([Weight(repeat=1.5), Weight(choose=3)], samples, None, 9176)
    assert (absolute.choose.tolist(), absolute.epoch_size) == ([12, 3], 15)
    streams = tuple(
        StreamSpec(np.array(sizes), int(choose)) for sizes, choose in zip(([5, 3], [4]), absolute.choose, strict=True)
    )
    draw = OrderSpec(streams, 1, 1).draw(0)
    assert draw.units.tolist() == [5, 2, 3, 2, 3]
    assert draw.ids is not None
    assert draw.ids.tolist() == [0, 1, 2, 3, 4, 3, 4, 5, 6, 7, 5, 7, 8, 10, 11]


def test_length_after_replication() -> None:
    """Four ranks of eight, replicated twice, share the samples among four."""
    world = World(2, 4, 1, 7).replicate(2)
    assert (world.num_nodes, world.ranks_per_node, world.rank) == (1, 4, 3)
    assert epoch_length(ONE, world) == 2
