"""What `mdsfs top` shows, and the rates in it."""

from __future__ import annotations

import pytest

from mdsfs.metrics.sample import rates, sample
from mdsfs.metrics.screen import lines

from .documents import document


def test_rates_between_two_looks() -> None:
    """Differences by time: bytes, reads, how many waited at a time, and the share that did not wait."""
    before = sample(document())
    later = document()
    later["engine"]["uptime_seconds"] = 12.0
    later["remote"]["bytes"] += 2000
    later["reads"] |= {"at_once": 96, "misses": 7, "waited_seconds": 5.5}
    found = rates(before, sample(later))
    assert found["received"] == 1000
    assert found["stalled"] == 1.5
    assert found["hit_rate"] == pytest.approx(6 / 8)


def test_without_reads_there_is_no_hit_rate() -> None:
    """Nothing read is not a rate of zero."""
    later = document()
    later["engine"]["uptime_seconds"] = 11.0
    assert "hit_rate" not in rates(sample(document()), sample(later))


def test_another_engine_counts_from_nothing() -> None:
    """Counters that went back are those of a new engine: its rates are since its own start."""
    fresh = document()
    fresh["engine"]["uptime_seconds"] = 2.0
    fresh["remote"]["bytes"] = 10
    assert rates(sample(document()), sample(fresh))["received"] == 5


def test_the_screen_names_what_is_there() -> None:
    """Cache, rates, datasets, readers; problems above all of it."""
    trouble = {"message": "s3://bucket: no connection", "times": 3}
    shown = lines(document(problems=[trouble]), rates(None, sample(document())), 200)
    text = "\n".join(shown)
    assert shown[1] == "PROBLEM  s3://bucket: no connection (3 times)"
    for part in (
        "/nvme/cache",
        "40.0 MiB of 100 MiB",
        "s3://bucket/ds",
        "2 complete 1 partial 7 absent",
        "mount /mnt/ds",
    ):
        assert part in text


def test_lines_fit_and_steer_nothing() -> None:
    """No line is longer than the terminal, and a name with control characters reaches it as question marks."""
    strange = document()
    strange["datasets"][0]["url"] = "s3://b/\x1b[2Jx\n"
    shown = lines(strange, rates(None, sample(strange)), 60)
    assert max(map(len, shown)) <= 60
    assert all(line.isprintable() for line in shown)
    assert any("s3://b/?[2Jx?" in line for line in shown)
