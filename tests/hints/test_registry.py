"""The engine's jobs by themselves, with a clock of their own: when a job ends, and what a planner is told of it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest
import trio

from mdsfs.engine.planning.hints import LINGER, Hints, Job, Member
from mdsfs.engine.planning.orders import Orders
from streaming.engine.hint import Hint, HintedStream, HintWorld

if TYPE_CHECKING:
    from trio.testing import MockClock

pytestmark = pytest.mark.trio

HINT = Hint(
    "job",
    (HintedStream(40, sizes=np.full(4, 10, np.int64)),),
    HintWorld(1, 1, 2, 0, 1),
    ids=np.arange(40, dtype=np.int64).reshape(1, 2, 5, 4),
)


class Told:
    """A planner that writes down what it is told."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def job_changed(self, job: Job) -> None:
        self.log.append(f"changed {sorted(job.orders)}")

    def moved(self, job: Job, rank: int, worker: int, epoch: int, batch: int) -> None:
        self.log.append(f"moved {worker}: {epoch}, {batch}")

    def job_ended(self, job: Job) -> None:
        self.log.append("ended")


def reader(hints: Hints, epoch: int, *lanes: int) -> Member:
    """One that has begun an epoch with these lanes."""
    member = hints.join(HINT, [None], [None], 1, [])
    hints.begin(member, epoch, 0, [(0, lane, 0) for lane in lanes], HINT)
    return member


@pytest.fixture
def hints(nursery: trio.Nursery) -> Hints:
    """An engine's."""
    found = Hints(Orders(), nursery)
    found.planner = Told()
    return found


def told(hints: Hints) -> list[str]:
    """What the planner has heard since it was asked last."""
    assert isinstance(hints.planner, Told)
    log, hints.planner.log = hints.planner.log, []
    return log


async def test_what_a_planner_is_told(hints: Hints) -> None:
    """The order first, then each move, then the end."""
    member = reader(hints, 0, 0)
    assert told(hints) == ["changed [0]", "moved 0: 0, 0"]
    hints.move(member, 0, [(0, 0, 3)])
    assert told(hints) == ["moved 0: 0, 3"]
    hints.leave(member)
    assert told(hints) == ["ended"]
    assert hints.jobs == {}


async def test_the_last_in_a_lane_counts(hints: Hints) -> None:
    """Of two that read the same; one that is an epoch behind is on its way out."""
    one, two = reader(hints, 0, 0), reader(hints, 0, 0)
    hints.move(one, 0, [(0, 0, 4)])
    hints.move(two, 0, [(0, 0, 2)])
    assert one.job is two.job
    assert one.job.positions == {(0, 0): (0, 2)}
    hints.begin(one, 1, 0, [(0, 0, 0)], HINT)
    assert one.job.positions == {(0, 0): (1, 0)}
    hints.leave(one)
    assert two.job.positions == {(0, 0): (0, 2)}


async def test_between_two_epochs(hints: Hints, autojump_clock: MockClock) -> None:
    """All workers have ended at the end of their epoch: the job waits for others, and goes on with them."""
    workers = [reader(hints, 0, lane) for lane in range(2)]
    for lane, worker in enumerate(workers):
        hints.move(worker, 0, [(0, lane, 5)])
    for worker in workers:
        hints.leave(worker)
    assert len(hints.jobs) == 1
    await trio.sleep(LINGER - 1)
    again = reader(hints, 1, 0, 1)
    assert again.job is workers[0].job
    await trio.sleep(2 * LINGER)
    assert again.job.positions == {(0, 0): (1, 0), (0, 1): (1, 0)}
    hints.leave(again)
    assert hints.jobs == {}


async def test_at_once_after_the_last(hints: Hints, autojump_clock: MockClock) -> None:
    """A reader that comes in the very moment in which the last one goes keeps the job."""
    first = reader(hints, 0, 0)
    hints.move(first, 0, [(0, 0, 5)])
    hints.leave(first)
    second = reader(hints, 1, 0)
    await trio.sleep(2 * LINGER)
    assert list(hints.jobs.values()) == [second.job]


async def test_nobody_comes(hints: Hints, autojump_clock: MockClock) -> None:
    """The job ends after a while, and its order's room is free again."""
    only = reader(hints, 0, 0)
    hints.move(only, 0, [(0, 0, 5)])
    hints.leave(only)
    await trio.sleep(LINGER + 1)
    assert hints.jobs == {}
    assert hints._orders.used == 0
    assert told(hints)[-1] == "ended"


async def test_another_way_into_an_epoch(hints: Hints) -> None:
    """A run that goes on elsewhere in the same epoch has another order of it."""
    member = reader(hints, 0, 0)
    before = member.job.orders[0]
    other = dataclasses.replace(HINT, ids=HINT.ids[:, :, 2:] if HINT.ids is not None else None)
    hints.begin(member, 0, 16, [(0, 0, 0)], other)
    assert member.job.orders[0].shape == (1, 2, 3, 4)
    assert before.shape == (1, 2, 5, 4)
