"""Units that may go, offered once a turn."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mdsfs.plan.offers import Offers
from mdsfs.plan.planner import Planner
from mdsfs.plan.track import prepare

from .cache import JOB, shape_of


@pytest.fixture
def planner() -> Planner:
    """600 samples of a kilobyte that are all here, read in the order of their numbers."""
    shape = shape_of(4, 150, 1000)
    order = np.arange(600).reshape(1, 1, 150, 4)
    streams = {0: [(0, 0, 600)]}
    planner = Planner(60_000)
    planner.add_dataset(0, shape)
    planner.add_epoch(JOB, streams, 0, prepare(order, streams, {0: shape}))
    planner.arrived(0, 0, 600)
    return planner


def offered(offers: Offers, distance: int, most: int = 600) -> list[int]:
    """The next samples."""
    return [unit.sample for unit in itertools.islice(offers.units(distance), most) if unit.sample is not None]


def test_what_was_offered_comes_last(planner: Planner) -> None:
    """Furthest first, over any number of calls; one for which the rest is not enough gets all of them, each once."""
    offers = Offers(planner)
    assert offered(offers, -1, 3) == [599, 598, 597]
    assert offers.has_passed(0, 598)
    assert not offers.has_passed(0, 100)
    assert offered(offers, -1, 300) == list(range(596, 296, -1))
    assert offered(offers, -1) == [*range(296, -1, -1), *range(599, 296, -1)]


def test_nothing_is_offered_for_what_is_read_later(planner: Planner) -> None:
    """What is read sooner may ask for the rest."""
    offers = Offers(planner)
    assert offered(offers, 597) == [599, 598]
    assert offered(offers, 599) == []
    assert offered(offers, 595, 2) == [599, 598]
    assert offered(offers, 595, 2) == [597, 596]


def test_another_turn_begins_anew(planner: Planner) -> None:
    """A reader has moved: the next use of what was offered may be another one."""
    offers = Offers(planner)
    assert offered(offers, -1, 3) == [599, 598, 597]
    planner.moved(JOB, 0, 0, 0, 1)
    assert sorted(offered(offers, -1, 4)) == [0, 1, 2, 3]  # what has been read is not read again
    assert offered(offers, -1, 1) == [599]


def test_what_has_gone_meanwhile_is_passed_over(planner: Planner) -> None:
    """Another unit's eviction may have taken it along."""
    offers = Offers(planner)
    assert offered(offers, -1, 1)[0] == 599
    planner.gone(0, 590, 598, 0)
    assert 597 not in offered(offers, -1)
