"""Numbers of files as runs, as the engine's requests want them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mdsfs.contents.doors import runs_of


@given(st.sets(st.integers(min_value=0, max_value=60)))
def test_runs_are_the_numbers(numbers: set[int]) -> None:
    """Nothing is lost or added, and no two runs could be one."""
    runs = runs_of(list(numbers))
    assert [number for first, count in runs for number in range(first, first + count)] == sorted(numbers)
    ends = [first + count for first, count in runs]
    assert all(end < first for end, (first, _) in zip(ends, runs[1:], strict=False))
    assert all(count > 0 for _, count in runs)
