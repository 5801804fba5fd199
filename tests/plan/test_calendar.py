"""The calendar against a plain sort."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mdsfs.plan.calendar import ABSENT, UNKNOWN, Calendar

UNITS = 12
KEYS = st.integers(0, 40) | st.just(UNKNOWN)
STEPS = st.lists(
    st.tuples(st.sampled_from(["put", "gone", "look", "moved"]), st.integers(0, UNITS - 1), KEYS), max_size=60
)


@given(STEPS, st.integers(1, 9))
def test_the_furthest_come_first_whatever_has_changed_in_between(steps: list[tuple[str, int, int]], width: int) -> None:
    """Units that are put, forgotten and put elsewhere come once each, in order of their position of now.

    A position that has become smaller without a word is found out too; one that has become larger must be told.
    """
    calendar, model = Calendar(width), dict[int, int]()

    def current(units: np.ndarray) -> np.ndarray:
        return np.array([model.get(int(unit), ABSENT) for unit in units], np.int64)

    for what, unit, key in steps:
        if what == "gone":
            model.pop(unit, None)
        elif what == "moved" and unit in model:
            model[unit] = min(key, model[unit])
        elif what == "put":
            model[unit] = key
            calendar.put(np.array([unit]), np.array([key]))
        elif what == "look":
            found = list(calendar.furthest(current))
            assert sorted(unit for _, unit in found) == sorted(model)
            assert [key for key, _ in found] == sorted(model.values(), reverse=True)
            assert all(model[unit] == key for key, unit in found)


def test_looking_at_a_few_leaves_the_rest_as_it_was() -> None:
    """An iterator that is given up in the middle loses nothing."""
    calendar = Calendar(10)
    keys = np.arange(100, dtype=np.int64)
    calendar.put(keys, keys)
    for _ in range(3):
        assert [unit for _, unit in zip(range(5), calendar.furthest(lambda units: units), strict=False)]
    assert [unit for _, unit in calendar.furthest(lambda units: units)] == list(range(99, -1, -1))
