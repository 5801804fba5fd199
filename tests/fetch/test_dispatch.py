"""Which job is next."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mdsfs.engine.fetching.dispatch import Dispatcher


def test_demand_goes_first_then_arrival() -> None:
    """Priority decides, and among equals who came first."""
    queue: Dispatcher[str] = Dispatcher(9)
    for ticket, priority in (("ahead", 1), ("first", 0), ("second", 0)):
        queue.add(ticket, ticket, priority)
    assert [queue.next() for _ in range(4)] == ["first", "second", "ahead", None]


def test_a_stuck_object_leaves_room_for_others() -> None:
    """At its bound an object's tickets wait, whatever their priority, and the others pass."""
    queue: Dispatcher[int] = Dispatcher(2)
    for ticket in range(4):
        queue.add(ticket, "stuck", 0)
    queue.add(4, "other", 1)
    assert [queue.next() for _ in range(4)] == [0, 1, 4, None]
    queue.finished("stuck")
    assert [queue.next(), queue.next()] == [2, None]


def test_a_ticket_that_lost_its_process_goes_before_its_equals() -> None:
    """It has waited already."""
    queue: Dispatcher[str] = Dispatcher(9)
    queue.add("waiting", "a", 0)
    queue.add("again", "b", 0, first=True)
    assert queue.next() == "again"


def test_a_removed_ticket_never_runs() -> None:
    """Only one that waits can be removed."""
    queue: Dispatcher[str] = Dispatcher(9)
    queue.add("a", "x", 0)
    queue.add("b", "x", 0)
    assert queue.remove("a")
    assert not queue.remove("a")
    assert len(queue) == 1
    assert [queue.next(), queue.next()] == ["b", None]
    assert not queue.remove("b")


class Plain:
    """The obvious queue: look at everything each time."""

    def __init__(self, per_object: int) -> None:
        self.per_object = per_object
        self.waiting: list[tuple[int, int, int, str]] = []
        self.running: list[str] = []

    def next(self) -> int | None:
        for entry in sorted(self.waiting):
            if self.running.count(entry[3]) < self.per_object:
                self.waiting.remove(entry)
                self.running.append(entry[3])
                return entry[2]
        return None


@given(
    st.integers(1, 3),
    st.lists(
        st.tuples(st.sampled_from(["add", "next", "finish", "remove"]), st.sampled_from("abc"), st.integers(0, 2))
    ),
)
def test_it_does_what_the_obvious_queue_does(per_object: int, steps: list[tuple[str, str, int]]) -> None:
    """Every sequence of calls gives the same tickets as sorting all that waits."""
    queue: Dispatcher[int] = Dispatcher(per_object)
    plain = Plain(per_object)
    for number, (step, target, priority) in enumerate(steps):
        if step == "add":
            queue.add(number, target, priority)
            plain.waiting.append((priority, number, number, target))
        elif step == "next":
            assert queue.next() == plain.next()
        elif step == "finish" and target in plain.running:
            plain.running.remove(target)
            queue.finished(target)
        elif step == "remove" and plain.waiting:
            entry = plain.waiting.pop(priority % len(plain.waiting))
            assert queue.remove(entry[2])
        assert len(queue) == len(plain.waiting)
        assert queue.running == len(plain.running)
