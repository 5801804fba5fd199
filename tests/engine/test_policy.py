"""Least recently used, against a list."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mdsfs.engine.cache.policy import LeastRecentlyUsed, Victim

CHUNKS = st.tuples(st.just(1), st.integers(0, 3), st.integers(0, 3))


@given(st.lists(st.tuples(st.sampled_from(["touch", "forget"]), CHUNKS)))
def test_victims_come_in_order_of_their_last_use(steps: list[tuple[str, tuple[int, int, int]]]) -> None:
    """The order is that of a list to whose end every touched chunk moves."""
    policy, model = LeastRecentlyUsed(), list[tuple[int, int, int]]()
    for step, chunk in steps:
        if chunk in model:
            model.remove(chunk)
        if step == "touch":
            policy.touch(chunk)
            model.append(chunk)
        else:
            policy.forget(chunk)
    assert [tuple(each[:3]) for each in policy.victims()] == model
    assert all(policy.is_recent(chunk) for chunk in model)


def test_files_of_an_earlier_life_go_before_what_was_used_in_this_one() -> None:
    """Adopted files come first, whole, in the order of their adoption, until they are forgotten."""
    policy = LeastRecentlyUsed()
    policy.touch((1, 0, 0))
    policy.adopt(1, [2, 3])
    policy.adopt(2, [0])
    policy.forget_file((1, 3))
    assert list(policy.victims()) == [Victim(1, 2, None), Victim(2, 0, None), Victim(1, 0, 0)]
    assert repr(policy) == "LeastRecentlyUsed(2 adopted files, 1 chunks)"
