"""Merged orders, what is past, and next uses, against loops over every position."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mdsfs.plan.calendar import UNKNOWN
from mdsfs.plan.epoch import Epoch
from mdsfs.plan.shape import Shape
from mdsfs.plan.track import Track, prepare

if TYPE_CHECKING:
    from numpy.typing import NDArray

SAMPLES = [3, 0, 4, 1]
FIRST = np.concatenate([[0], np.cumsum(SAMPLES)]).astype(np.int64)
SHAPE = Shape(
    FIRST, np.array([300, 10, 800, 100], np.int64), np.array([300, 10, 800, 100], np.int64), np.zeros(4, bool)
)
LOW = 2  # the id of the dataset's first sample in the job's mix


def orders(rng: np.random.Generator, shape: tuple[int, int, int, int]) -> NDArray[np.int64]:
    """Ids of the dataset, of others, and none, some of them several times."""
    return rng.integers(-1, int(FIRST[-1]) + 4, shape)


def merged(order: NDArray[np.int64]) -> list[tuple[int, int, int, int]]:
    """(rank, worker, batch, id) in the order in which a host reads: ranks take turns, batch by batch."""
    ranks, workers, batches, size = order.shape
    return [
        (rank, worker, batch, int(order[rank, worker, batch, place]))
        for batch in range(batches)
        for worker in range(workers)
        for rank in range(ranks)
        for place in range(size)
    ]


@given(st.integers(0, 10**6), st.tuples(*[st.integers(1, 3)] * 4), st.lists(st.tuples(*[st.integers(0, 4)] * 4)))
@settings(deadline=None)
def test_next_uses_are_those_that_a_loop_finds(
    seed: int, shape: tuple[int, int, int, int], moves: list[tuple[int, int, int, int]]
) -> None:
    """Of every sample and shard, after any moves of any readers, in two epochs; and the front is the first one open."""
    rng = np.random.default_rng(seed)
    track = Track()
    both = [orders(rng, shape), orders(rng, (*shape[:2], shape[2] + 1, shape[3]))]
    for number, order in enumerate(both):
        assert track.add(number, prepare(order, {7: [(7, LOW, int(FIRST[-1]))]}, {7: SHAPE}))
    done = dict.fromkeys(((0, r, w) for r in range(shape[0]) for w in range(shape[1])), 0)
    done |= {(1, r, w): 0 for _, r, w in done}
    for rank, worker, epoch, batch in moves:
        track.moved(rank, worker, epoch % 2, batch)
        if rank < shape[0] and worker < shape[1]:
            done[0, rank, worker] = both[0].shape[2] if epoch % 2 else min(batch, both[0].shape[2])
            done[1, rank, worker] = min(batch, both[1].shape[2]) if epoch % 2 else 0
    every = [(epoch, *each) for epoch, order in enumerate(both) for each in merged(order)]
    still = [
        (key, sample - LOW)
        for key, (epoch, rank, worker, batch, sample) in enumerate(every)
        if batch >= done[epoch, rank, worker]
    ]
    assert track.front == min((key for key, _ in still), default=len(every))
    samples = np.arange(int(FIRST[-1]))
    expected = [min((key for key, each in still if each == sample), default=UNKNOWN) for sample in samples]
    assert track.next_of_samples(7, samples).tolist() == expected
    by_shard = [min(expected[FIRST[i] : FIRST[i + 1]], default=UNKNOWN) for i in range(4)]
    assert track.next_of_shards(7, np.arange(4)).tolist() == by_shard


@given(st.integers(0, 10**6), st.tuples(*[st.integers(1, 4)] * 4), st.integers(0, 20), st.integers(0, 20))
def test_slots_are_batches_in_the_order_of_reading(
    seed: int, shape: tuple[int, int, int, int], first: int, more: int
) -> None:
    """Any stretch of slots has the ids that a loop over ranks and workers finds there."""
    order = orders(np.random.default_rng(seed), shape)
    epoch = Epoch(order)
    first = min(first, epoch.slots)
    stop = min(first + more, epoch.slots)
    ids = [each[3] for each in merged(order)][first * epoch.size : stop * epoch.size]
    assert epoch.ids(first, stop).tolist() == ids


def test_the_live_window_is_what_is_between_first_and_last_use() -> None:
    """Two shards that overlap for one position, one that does not."""
    ids = np.array([0, 3, 1, 4, 5, 7], np.int64).reshape(1, 1, 6, 1)
    needs = prepare(ids, {0: [(0, 0, 8)]}, {0: SHAPE}).needs[0]
    assert needs.window == 1100
    assert needs.shards == 1200
    assert needs.samples == int(6 * 1210 / 8)


def test_a_reader_far_behind_is_not_waited_for() -> None:
    """With a drift of four positions the front follows the fastest reader."""
    track = Track()
    track.add(0, prepare(np.arange(16, dtype=np.int64).reshape(2, 1, 8, 1), {}, {}))
    track.drift = 4
    assert track.moved(0, 0, 0, 6) is not None
    assert (track.front, track.lead) == (8, 12)
