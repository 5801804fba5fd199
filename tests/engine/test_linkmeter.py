"""The link's measure: told times, exact figures; and stalls, counted."""

from __future__ import annotations

import pytest

from mdsfs.engine.fetching.linkmeter import SMALL, STRETCH, LinkMeter
from mdsfs.engine.planning.stalls import SHOWN, Stall, Stalls
from mdsfs.plan.planner import Link


def test_only_time_in_which_something_was_under_way_counts() -> None:
    """Two fetches beside each other, a pause, and one more: their bytes by the seconds that were busy."""
    meter = LinkMeter()
    meter.began(0.0)
    meter.began(0.1)
    meter.ended(0.2, 0.2, 1_000_000)
    meter.ended(0.3, 0.2, 1_000_000)
    assert meter.link().bandwidth == pytest.approx(2_000_000 / 0.3)
    meter.began(100.0)
    meter.ended(100.0 + STRETCH, STRETCH, 250_000)
    assert meter.link().bandwidth == pytest.approx(2_000_000 / 0.3)


def test_the_latency_is_that_of_the_quickest_small_fetch() -> None:
    """Large ones, and those that failed, say nothing about it."""
    meter = LinkMeter()
    assert meter.link() == Link()
    for seconds, received in ((0.05, 4096), (0.04, SMALL), (0.01, 0), (0.02, SMALL + 1)):
        meter.began(0.0)
        meter.ended(0.0, seconds, received)
    assert meter.link().latency == 0.04


def test_stalls_are_counted_by_cause_and_the_last_ones_shown() -> None:
    """However many there are."""
    stalls = Stalls()
    for number in range(SHOWN + 8):
        stalls.add(Stall(7, "shard.00000.mds", number, "latency" if number % 2 else "limit", 0.25))
    shown = stalls.to_json()
    assert shown["causes"] == {
        "latency": {"count": SHOWN // 2 + 4, "seconds": (SHOWN // 2 + 4) / 4},
        "limit": {"count": SHOWN // 2 + 4, "seconds": (SHOWN // 2 + 4) / 4},
    }
    assert [each["sample"] for each in shown["last"]] == list(range(8, SHOWN + 8))
