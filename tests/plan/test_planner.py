"""The planner, run in a cache without time, against bounds, and its victims against a loop over all that is here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdsfs.plan.calendar import UNKNOWN
from mdsfs.plan.planner import Link, Planner
from mdsfs.plan.regime import choose
from mdsfs.plan.track import Needs, prepare

from .cache import JOB, Cache, shape_of

if TYPE_CHECKING:
    from numpy.typing import NDArray


def shuffled(rng: np.random.Generator, shards: int, samples: int, block: int, batch: int, workers: int = 1) -> NDArray:
    """Shards in random order, samples shuffled within blocks of so many: [1][workers][batches][batch]."""
    ids = np.arange(shards * samples).reshape(shards, samples)[rng.permutation(shards)].reshape(-1)
    ids = np.concatenate([rng.permutation(ids[at : at + block]) for at in range(0, len(ids), block)])
    return ids.reshape(-1, workers, batch).transpose(1, 0, 2)[None].copy()


def run(cache: Cache, orders: list[NDArray], epochs: int) -> list[int]:
    """Bytes fetched in each epoch; the order of the next one is known from the start."""
    cache.learn(0, orders[0])
    found = []
    for number in range(epochs):
        cache.learn(number + 1, orders[number + 1])
        found.append(cache.epoch(number, orders[number]))
        cache.planner.drop_epoch(JOB, number)
    return found


@pytest.mark.parametrize(("block", "kind"), [(80, "shards"), (10**6, "ranges")])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75, 0.9])
def test_an_epoch_fetches_what_the_cache_cannot_hold(share: float, block: int, kind: str) -> None:
    """With the live window or without it: within a few samples of max(0, U - C), and nothing needed sooner goes."""
    rng = np.random.default_rng(1)
    shape = shape_of(40, 16, 1000)
    total = int(shape.sizes.sum())
    cache = Cache(shape, int(total * share), Link(4000, 1.0, 0.0))
    found = run(cache, [shuffled(rng, 40, 16, block, 4, 2) for _ in range(4)], 3)
    assert cache.planner.dataset(0).regime.kind == kind
    assert found[0] <= 1.03 * total
    assert sum(found[1:]) / 2 <= 1.05 * (total - cache.capacity) + 8 * 1000
    assert cache.sooner == 0


def test_where_all_fits_each_byte_is_fetched_once() -> None:
    """By two jobs of different orders, of two ranks and two workers each, in any interleaving."""
    rng = np.random.default_rng(2)
    shape = shape_of(8, 16, 1000)
    cache = Cache(shape, int(shape.sizes.sum()))
    orders = {job: shuffled(rng, 8, 16, 128, 4, 4).reshape(2, 2, -1, 4) for job in ("one", "two")}
    for job, order in orders.items():
        cache.learn(0, order, job)
    lanes = [(job, rank, worker) for job in orders for rank in range(2) for worker in range(2)] * 8
    rng.shuffle(lanes)
    done = dict.fromkeys(lanes, 0)
    for lane in map(tuple, lanes):
        job, rank, worker = str(lane[0]), int(lane[1]), int(lane[2])
        batch = done[job, rank, worker]
        cache.planner.moved(job, rank, worker, 0, batch)
        cache.run()
        cache.read(orders[job][rank, worker, batch])
        done[job, rank, worker] = batch + 1
    assert cache.fetched == int(shape.sizes.sum())


@given(
    st.integers(0, 10**6), st.integers(2, 40), st.lists(st.tuples(st.integers(0, 1), st.integers(0, 12)), max_size=12)
)
@settings(deadline=None)
def test_victims_are_what_is_read_last(seed: int, here: int, moves: list[tuple[int, int]]) -> None:
    """Furthest first, also of two jobs with different orders, and only what is read later than what comes."""
    rng = np.random.default_rng(seed)
    shape = shape_of(4, 12, 1000)
    streams = {0: [(0, 0, shape.samples)]}
    planner = Planner(8000)
    planner.add_dataset(0, shape)
    orders = {job: rng.permutation(48).reshape(1, 1, 12, 4) for job in ("a", "b")}
    at = dict.fromkeys(orders, 0)
    for job, order in orders.items():
        planner.add_epoch(job, streams, 0, prepare(order, streams, {0: shape}))
    resident = rng.permutation(48)[:here]
    for sample in resident.tolist():
        planner.arrived(0, sample, sample + 1)
    for which, batch in moves:
        job = "ab"[which]
        planner.moved(job, 0, 0, 0, batch)
        at[job] = batch
    soonest = {}
    for sample in resident.tolist():
        places = [int(np.flatnonzero(order.reshape(-1) == sample)[0]) - 4 * at[job] for job, order in orders.items()]
        soonest[sample] = min((place for place in places if place >= 0), default=UNKNOWN)
    for limit in (-1, 10):
        found = [(unit.sample, unit.distance) for unit in planner.victims(limit)]
        expected = {sample: distance for sample, distance in soonest.items() if distance > limit}
        assert dict(found) == expected
        distances = [distance for _, distance in found]
        assert distances == sorted(distances, reverse=True)


def test_what_is_read_first_is_fetched_first() -> None:
    """Heads, then samples in the order of the batches, however many calls it takes."""
    rng = np.random.default_rng(3)
    shape = shape_of(6, 8, 1000)
    order = shuffled(rng, 6, 8, 48, 4)
    streams = {0: [(0, 0, 48)]}
    planner = Planner(20_000, Link(1e6, 0.001, 0.0))
    planner.add_dataset(0, shape)
    planner.add_epoch(JOB, streams, 0, prepare(order, streams, {0: shape}))
    fetches = planner.fetches(20_000, 10**6)
    assert {fetch.kind for fetch in fetches} == {"head"}
    for fetch in fetches:
        planner.head_arrived(0, fetch.shard)
    keys = []
    for _ in range(3):
        keys += [fetch.key for fetch in planner.fetches(16_000, 6_000) if fetch.kind == "samples"]
    assert keys == sorted(keys)
    assert keys[0] == 0


def test_what_found_no_room_is_asked_for_again_when_a_reader_has_gone_on() -> None:
    """Not before: nothing would be different."""
    shape = shape_of(1, 8, 1000)
    order = np.arange(8).reshape(1, 1, 4, 2)
    streams = {0: [(0, 0, 8)]}
    planner = Planner(4000)
    planner.add_dataset(0, shape)
    planner.add_epoch(JOB, streams, 0, prepare(order, streams, {0: shape}))
    planner.head_arrived(0, 0)
    (first, *_) = planner.fetches(10_000, 1)
    planner.ended(first, again=True)
    assert planner.fetches(10_000, 10**6) == []
    planner.moved(JOB, 0, 0, 0, 1)
    again = planner.fetches(100_000, 10**6)
    assert min(fetch.first for fetch in again) == 2


def test_of_shards_that_others_read_too_only_the_own_samples_are_fetched() -> None:
    """A host that reads a fifth of every shard keeps ranges, whatever its cache."""
    regimes = choose({0: Needs(samples=200, shards=1000, window=1000)}, 10**6, 0)
    assert (regimes[0].kind, regimes[0].changes_at_bytes) == ("ranges", None)
    assert regimes[0].reason == "this host reads 20% of the shards that it reads from"


def test_the_smallest_live_windows_are_kept_whole_first() -> None:
    """Of three datasets two fit; the third says at which size it would."""
    needs = {number: Needs(size, size, size) for number, size in ((1, 500), (2, 100), (3, 300))}
    found = choose(needs, 450, 50)
    assert {number: regime.kind for number, regime in found.items()} == {1: "ranges", 2: "shards", 3: "shards"}
    assert found[1].changes_at_bytes == 950


def test_the_planner_says_how_far_away_is_what_would_go_first() -> None:
    """Nothing has to go while there is room; then it is what is read last of all, and distances are counted alike."""
    rng = np.random.default_rng(3)
    shape = shape_of(10, 16, 1000)
    cache = Cache(shape, int(shape.sizes.sum()) // 2)
    orders = [shuffled(rng, 10, 16, 160, 4) for _ in range(2)]
    planner = cache.planner
    cache.learn(0, orders[0])
    planner.moved(JOB, 0, 0, 0, 0)
    for shard in range(10):
        planner.head_arrived(0, shard)
    planner.fetches(80_000, 4000)
    assert planner.furthest == UNKNOWN
    planner.arrived_all(0, orders[0].reshape(-1)[20:100])
    planner.fetches(0, 4000)
    assert planner.furthest == 99
    assert planner.distances(0, orders[0].reshape(-1)[[79, 3]]).tolist() == [79, 3]
    assert planner.soonest(0, orders[0].reshape(-1)[[79, 3]]) == 3
    planner.moved(JOB, 0, 0, 0, 1)
    assert planner.distances(0, orders[0].reshape(-1)[[79, 3]]).tolist() == [75, UNKNOWN]
