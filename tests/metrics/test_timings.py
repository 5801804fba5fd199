"""Histograms: what is counted, what is believed of others, what is read from them."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mdsfs.metrics.timings import BOUNDS, MOST_SERIES, Histogram, Timings, checked_series, quantile


@given(st.lists(st.floats(0, 100)))
def test_each_value_is_counted_once(values: list[float]) -> None:
    """Under the first bound that is not below it; the last count is for what is above all bounds."""
    histogram = Histogram()
    for value in values:
        histogram.observe(value)
    assert sum(histogram.counts) == len(values)
    for at, bound in enumerate(BOUNDS):
        assert sum(histogram.counts[: at + 1]) == sum(value <= bound for value in values)


@given(st.lists(st.sampled_from(BOUNDS), min_size=1), st.floats(0.01, 1))
def test_quantile_is_the_smallest_bound_with_the_share_below(values: list[float], share: float) -> None:
    """The least bound such that at least that share of the values is not above it."""
    histogram = Histogram()
    for value in values:
        histogram.observe(value)
    below = [bound for bound in BOUNDS if sum(value <= bound for value in values) >= share * len(values)]
    assert quantile(histogram.counts, share) == below[0]


def test_quantile_of_nothing() -> None:
    """There is none."""
    assert quantile(Histogram().counts, 0.5) is None


def test_a_block_is_timed_however_it_ends() -> None:
    """An exception passes through and is counted."""
    timings = Timings()
    for error in (None, ValueError):
        try:
            with timings.timed("x_seconds", "op", "read"):
                if error:
                    raise error
        except ValueError:
            pass
    assert [sum(each["counts"]) for each in timings.snapshot()] == [2]


def test_what_a_snapshot_says_is_believed() -> None:
    """A snapshot passes the check that reports of other processes have to pass."""
    timings = Timings()
    timings.of("fuse_seconds", "operation", "read").observe(0.1)
    timings.of("fuse_seconds", "operation", "open").observe(1e-5)
    timings.of("evict_seconds").observe(1000)
    assert checked_series(timings.snapshot()) == timings.snapshot()


_SERIES = {"name": "a", "labels": {}, "sum": 0, "counts": [0] * (len(BOUNDS) + 1)}
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(_SERIES, _JSON)) | _JSON)
def test_nonsense_is_left_out(nonsense: Any) -> None:
    """Whatever JSON a client sends, what remains has our form; the good ones beside it remain."""
    for each in checked_series([_SERIES, nonsense]):
        assert each.keys() == _SERIES.keys()
        assert len(each["counts"]) == len(BOUNDS) + 1
        assert 0 <= each["sum"] < float("inf")
    assert _SERIES in checked_series([nonsense, _SERIES])
    assert checked_series(nonsense) == [] or isinstance(nonsense, list)


def test_reports_are_bounded() -> None:
    """Of a client that reports thousands of series, the first few are taken."""
    assert len(checked_series([_SERIES] * 10_000)) == MOST_SERIES
