"""What holds for every run: nothing lost, nothing twice, resumption exact, and fast paths equal to the plain ones."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.order import OrderSpec, Spanner, StreamSpec, Weight, World, epoch_order, get_shuffle, rank_order, weigh
from streaming.order.partition import traversal
from streaming.order.spans import Spans
from tests.order.vectors import ALGORITHMS

SIZES = st.lists(st.integers(1, 20), min_size=1, max_size=20)
SHUFFLES = st.sampled_from(ALGORITHMS)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@given(SIZES, SHUFFLES, st.integers(1, 5), st.integers(0, 9), st.integers(2, 50))
def test_a_shuffle_is_a_permutation(sizes: list[int], algo: str, groups: int, epoch: int, block: int) -> None:
    """Every id stands at one position."""
    total = sum(sizes)
    groups = min(groups, total)
    assert sorted(get_shuffle(algo, np.array(sizes), groups, 3, epoch, block)) == list(range(total))


@given(SIZES, st.integers(1, 5), st.integers(0, 9))
def test_a_canonical_node_keeps_its_samples(sizes: list[int], groups: int, epoch: int) -> None:
    """Which samples a canonical node reads is the same in every epoch."""
    total = sum(sizes)
    bounds = [total * part // groups for part in range(groups + 1)]
    first, later = (get_shuffle("py1s", np.array(sizes), groups, 3, number) for number in (0, epoch))
    for low, high in pairwise(bounds):
        assert set(first[low:high]) == set(later[low:high])


@given(st.lists(st.integers(0, 6), max_size=12), st.integers(1, 6))
def test_spans_are_cut_as_by_hand(sizes: list[int], parts: int) -> None:
    """The binary search cuts where walking from span to span does."""
    ends = np.cumsum(np.array([*sizes], np.int64))
    spans = Spans(ends - sizes if sizes else ends, np.array(sizes, np.int64))
    walked, rest, done = [], list(spans), 0
    for part in range(parts):
        stop, group = spans.total * (part + 1) // parts, []
        while rest and done + rest[0][1] <= stop:
            group.append(rest.pop(0))
            done += group[-1][1]
        if rest and done < stop:
            begin, size = rest[0]
            group.append((begin, stop - done))
            rest[0] = (begin + stop - done, size - (stop - done))
            done = stop
        walked.append(group)
    assert [list(group) for group in spans.split(parts)] == walked


def _spec(sizes: list[int], algo: str, canonical: int, batch: int) -> OrderSpec:
    stream = StreamSpec(np.array(sizes, np.int64), sum(sizes))
    return OrderSpec((stream,), batch, canonical, shuffle=True, shuffle_algo=algo, block_size=16)


@settings(deadline=None)
@given(SIZES, SHUFFLES, st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4]), st.integers(1, 3), st.integers(1, 5))
def test_an_epoch_shows_every_sample(
    sizes: list[int], algo: str, nodes: int, ranks: int, workers: int, batch: int
) -> None:
    """All ids are seen; repeats are fewer than two rounds of the ranks; each rank's own part is that of the whole."""
    sizes = [*sizes, 20]  # enough for every rank
    order = epoch_order(_spec(sizes, algo, nodes, batch), World(nodes, ranks, workers, 0), 2)
    seen = order[order != -1]
    assert set(seen) == set(range(sum(sizes)))
    assert len(seen) - sum(sizes) < 2 * nodes * ranks
    for rank in range(nodes * ranks):
        world = World(nodes, ranks, workers, rank * workers)
        part = rank_order(_spec(sizes, algo, nodes, batch), world, 2)
        assert np.array_equal(part, order[world.node, world.rank_of_node])


@settings(deadline=None)
@given(SIZES, SHUFFLES, st.integers(1, 4), st.integers(1, 4), st.integers(0, 40), st.sampled_from([1, 2, 4]))
def test_resuming_gives_the_rest(
    sizes: list[int], algo: str, workers: int, other: int, batches: int, ranks: int
) -> None:
    """After any number of global batches, on other numbers of workers and ranks, exactly the rest follows."""
    sizes = [*sizes, *[4] * ((-sum(sizes)) % 4), 20]
    sizes[-1] += -sum(sizes) % 4  # whole rounds of four ranks: nothing is repeated
    spec = _spec(sizes, algo, 4, 4)
    drop = min(batches * 4, sum(sizes))
    whole = traversal(epoch_order(spec, World(1, 1, workers, 0), 1))
    rest = epoch_order(_spec(sizes, algo, 4, 4 // ranks), World(1, ranks, other, 0), 1, drop)
    flat = rest.transpose(3, 2, 0, 4, 1).reshape(-1)  # samples go round the ranks
    assert flat[flat != -1].tolist() == whole[whole != -1][drop:].tolist()


@settings(deadline=None)
@given(st.sampled_from(["per_stream", "stratified", "device_per_stream"]), st.integers(0, 6), st.booleans())
def test_resuming_by_global_batches(method: str, batches: int, shuffle: bool) -> None:
    """The methods that build global batches go on after the last whole one."""
    streams = tuple(StreamSpec(np.array([30, 20, n]), 50 + n, (50 + n) / 110) for n in (1, 9))
    spec = OrderSpec(streams, 3, 2, shuffle=shuffle, block_size=64, batching_method=method)
    world = World(2, 1, 1, 0)
    whole = traversal(epoch_order(spec, world, 4))
    assert traversal(epoch_order(spec, world, 4, batches * 6 + 5)).tolist() == whole[batches * 6 :].tolist()


@given(SIZES, st.data())
def test_spanner_finds_every_sample(sizes: list[int], data: st.DataObject) -> None:
    """An id's shard and place add up to it again, one by one and as an array; past the end is an IndexError."""
    spanner = Spanner(np.array(sizes))
    index = data.draw(st.integers(0, sum(sizes) - 1))
    shard, place = spanner[index]
    assert sum(sizes[:shard]) + place == index
    assert place < sizes[shard]
    assert [int(part[0]) for part in spanner.find(np.array([index]))] == [shard, place]
    for outside in (-1, sum(sizes)):
        with pytest.raises(IndexError, match="Invalid sample index"):
            spanner[outside]


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=8), st.integers(1, 10_000))
def test_proportions_fill_the_epoch(shares: list[float], size: int) -> None:
    """Whatever the proportions, the streams' counts add up to the epoch."""
    drawn = weigh([Weight(proportion=share) for share in shares], np.full(len(shares), 10), size, 5)
    assert drawn.choose.sum() == size == drawn.epoch_size


@pytest.mark.parametrize(
    ("weights", "size", "words"),
    [
        ([Weight(proportion=1, repeat=2)], None, "at most one"),
        ([Weight(proportion=1), Weight()], None, "every stream or for none"),
        ([Weight(repeat=2)], 10, "goes with proportions only"),
        ([Weight(repeat=0.05)], None, "no sample at all"),
    ],
)
def test_contradicting_weights_are_refused(weights: list[Weight], size: int | None, words: str) -> None:
    """Two weights for a stream, proportions beside counts, an epoch size beside counts, nothing drawn."""
    with pytest.raises(ValueError, match=words):
        weigh(weights, np.full(len(weights), 10), size, 5)


def test_the_world_from_the_environment() -> None:
    """Ranks come from the launcher's variables; without them the process is alone."""
    world = World.detect({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"})
    assert (world.num_nodes, world.node, world.rank_of_node, world.workers_per_rank) == (2, 1, 1, 1)
    assert World.detect({}) == World(1, 1, 1, 0) == World(1, 1, 1, 0).copy()
    assert world.to_json()["rank"] == 5
    with pytest.raises(ValueError, match="divisible by your replication factor"):
        world.replicate(3)


def test_a_stream_that_gives_nothing_is_refused() -> None:
    """Methods that compose batches from every stream cannot from an empty one; `random` can."""
    streams = (StreamSpec(np.array([4]), 0, 0.1), StreamSpec(np.array([4]), 4, 0.9))
    world = World(1, 1, 1, 0)
    assert epoch_order(OrderSpec(streams, 2, 1), world, 0).reshape(-1).tolist() == [4, 5, 6, 7]
    with pytest.raises(ValueError, match="draws no sample"):
        epoch_order(OrderSpec(streams, 2, 1, batching_method="per_stream"), world, 0)
