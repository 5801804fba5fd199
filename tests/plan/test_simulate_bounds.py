"""The lines that a plan is measured against: the lower bound, Belady, the live window."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mdsfs.plan.bounds import Belady, live_window, lower_bound, thin


def replay(sizes: list[int], limit: int, epochs: list[list[int]]) -> list[int]:
    """Bytes that each epoch fetches; nothing is known to follow the last."""
    belady = Belady(np.array(sizes), limit)
    arrays = [np.array(epoch, np.int64) for epoch in [*epochs, []]]
    return [belady.epoch(units, following) for units, following in pairwise(arrays)]


def least_fetches(limit: int, uses: tuple[int, ...]) -> int:
    """The fewest fetches of units of one size, by trying everything."""

    @cache
    def rest(at: int, resident: frozenset[int]) -> int:
        if at == len(uses):
            return 0
        unit = uses[at]
        if unit in resident:
            return rest(at + 1, resident)
        choices = [resident]
        if len(resident) < limit:
            choices.append(resident | {unit})
        choices += [resident - {victim} | {unit} for victim in resident] if limit else []
        return 1 + min(rest(at + 1, frozenset(choice)) for choice in choices)

    return rest(0, frozenset())


@given(st.integers(0, 4), st.lists(st.integers(0, 5), min_size=1, max_size=9), st.lists(st.integers(0, 5), max_size=9))
@settings(max_examples=60)
def test_belady_is_optimal(limit: int, first: list[int], second: list[int]) -> None:
    """Over two epochs of units of one size nothing fetches less: every other way was tried."""
    assert sum(replay([1] * 6, limit, [first, second])) == least_fetches(limit, tuple(first + second))


@given(st.lists(st.integers(1, 50), min_size=2, max_size=12), st.integers(0, 300), st.integers(0, 99))
@settings(max_examples=60)
def test_no_epoch_beats_the_lower_bound(sizes: list[int], limit: int, seed: int) -> None:
    """With units of any size, each epoch fetches at least U - C, and the first one all of U."""
    rng = np.random.default_rng(seed)
    epochs = [rng.permutation(len(sizes)).tolist() for _ in range(3)]
    fetched = replay(sizes, limit, epochs)
    assert fetched[0] == sum(sizes)
    assert all(each >= lower_bound(sum(sizes), limit) for each in fetched)


def test_belady_reaches_the_bound() -> None:
    """Where each unit is used once an epoch and all are of one size, the bound is reached to the byte."""
    rng = np.random.default_rng(1)
    epochs = [rng.permutation(200).tolist() for _ in range(4)]
    assert replay([10] * 200, 1000, epochs)[1:] == [1000, 1000, 1000]


def test_all_of_it_fits() -> None:
    """A cache as large as the dataset fetches everything once."""
    assert replay([3, 4, 5], 12, [[0, 1, 2], [2, 1, 0], [1, 1, 0]]) == [12, 0, 0]


def test_a_unit_larger_than_the_cache_pushes_nothing_out() -> None:
    """It is fetched at each use, and what is resident stays."""
    assert replay([5, 50], 10, [[0, 1, 0, 1, 0]]) == [105]


def test_what_an_epoch_leaves_out_is_looked_for_in_the_next() -> None:
    """A unit that this epoch does not use, but the next one does at once, outlives one that is used late."""
    assert replay([1, 1, 1], 2, [[0, 1], [2], [0, 2, 1]]) == [2, 1, 1]


def test_live_window() -> None:
    """The most bytes between first and last use: one shard at a time in sequence, all of them when interleaved."""
    sizes = np.array([10, 20, 30])
    assert live_window(np.array([0, 0, 1, 1, 2]), sizes) == 30
    assert live_window(np.array([0, 1, 2, 0, 1]), sizes) == 60
    assert live_window(np.array([1, 0, 1, 2]), sizes) == 30
    assert live_window(np.array([], np.int64), sizes) == 0


def test_thinning_keeps_all_uses_of_what_it_keeps() -> None:
    """The kept units are the same in every epoch, with all their uses, and about as many as were asked for."""
    rng = np.random.default_rng(2)
    units, sizes = rng.integers(0, 5000, 100_000), rng.integers(1, 9, 5000)
    thinned = thin(units, sizes, 10_000)
    kept = np.unique(thinned.units)
    assert len(thinned.units) == int(np.isin(units, kept).sum())
    assert set(np.unique(thin(rng.permutation(units), sizes, 10_000).units)) == set(kept)
    assert abs(thinned.share - 0.1) < 0.02
    assert thin(units, sizes).share == 1.0


def test_a_thinned_trace_tells_the_same() -> None:
    """Belady on a tenth of the units says within 3 % what it says on all of them."""
    rng = np.random.default_rng(3)
    sizes = rng.integers(50, 150, 20_000)
    epochs = [rng.permutation(20_000) for _ in range(3)]
    limit = int(sizes.sum()) // 2
    whole, part = Belady(sizes, limit), None
    for units, following in pairwise(epochs):
        thinned = thin(units, sizes, 2_000)
        part = part or Belady(sizes, limit * thinned.share)
        full = whole.epoch(units, following)
        estimate = part.epoch(thinned.units, thin(following, sizes, 2_000).units) / thinned.share
        assert abs(estimate - full) < 0.03 * full
