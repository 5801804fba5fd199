"""How long things took, as histograms: counted where they happen, read where they are shown.

Pure and cheap (below a microsecond a value), so that the engine's and the mount's own threads can count each operation.
Every histogram has the same bounds: what one process counted can be shown, or added up, by another.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["BOUNDS", "Histogram", "Timings", "checked_series", "quantile"]

# Seconds. From an answer out of memory (tens of microseconds) to the read timeout of a mount (a minute).
BOUNDS = (25e-6, 1e-4, 25e-5, 1e-3, 25e-4, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
# What a client may report of itself: far above what our own mounts have, far below what would be a burden.
MOST_SERIES = 64
LONGEST_NAME = 64


class Histogram:
    """Counts of values up to each bound, and their sum."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.sum = 0.0

    def __repr__(self) -> str:
        return f"Histogram({sum(self.counts)} values, {self.sum:.3f} s)"

    def observe(self, seconds: float) -> None:
        """Count one value."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.sum += seconds


class Timings:
    """Histograms by what they measure (`name`) and one label."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, str, str], Histogram] = {}

    def __repr__(self) -> str:
        return f"Timings({len(self._series)} series)"

    def of(self, name: str, label: str = "", value: str = "") -> Histogram:
        """The histogram of a series, made where there is none; `label` and `value` come from a fixed few."""
        key = (name, label, value)
        found = self._series.get(key)
        if found is None:
            found = self._series[key] = Histogram()
        return found

    @contextmanager
    def timed(self, name: str, label: str = "", value: str = "") -> Iterator[None]:
        """Count how long the block takes, however it ends."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.of(name, label, value).observe(time.perf_counter() - begun)

    def snapshot(self) -> list[dict[str, Any]]:
        """One entry per series: name, labels, sum in seconds, and counts: one per bound, the last for what is above."""
        return [
            {
                "name": name,
                "labels": {label: value} if label else {},
                "sum": round(each.sum, 6),
                "counts": list(each.counts),
            }
            for (name, label, value), each in sorted(self._series.items())
        ]


def checked_series(found: object) -> list[dict[str, Any]]:
    """Series as another process told them, as far as they are ones: whatever else was in there is left out."""
    if not isinstance(found, list):
        return []
    return [each for each in found[:MOST_SERIES] if _is_series(each)]


def _is_series(each: object) -> bool:
    if not isinstance(each, dict) or each.keys() != {"name", "labels", "sum", "counts"}:
        return False
    labels, counts, total = each["labels"], each["counts"], each["sum"]
    words = [each["name"], *labels, *labels.values()] if isinstance(labels, dict) and len(labels) <= 1 else [None]
    return (
        all(isinstance(word, str) and len(word) <= LONGEST_NAME and word.isidentifier() for word in words)
        and isinstance(counts, list)
        and len(counts) == len(BOUNDS) + 1
        and all(type(count) is int and 0 <= count < 1 << 62 for count in counts)
        and type(total) in (int, float)
        and 0 <= total < 1e15
    )


def quantile(counts: list[int], share: float) -> float | None:
    """The bound below which that share of the values lies; None without values, the last bound where it is above."""
    total = sum(counts)
    if not total:
        return None
    passed = 0
    for bound, count in zip(BOUNDS, counts, strict=False):
        passed += count
        if passed >= share * total:
            return bound
    return BOUNDS[-1]
