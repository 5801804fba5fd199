"""How fast the way to the stores is, found out from the engine's own fetches. Pure: times are told.

The bandwidth is what arrived in the best of the last stretches in which fetches were always under way; the latency what
the quickest of the last small fetches took. Asking for twice their product keeps the link busy, and finds out when it
is faster than it seemed.
"""

from __future__ import annotations

from collections import deque

from mdsfs.plan.planner import Link

__all__ = ["LinkMeter"]

STRETCH = 0.25
STRETCHES = 40
SMALL = 128 << 10
SMALLS = 64


class LinkMeter:
    """Hears of jobs; says what the link is like."""

    def __init__(self) -> None:
        self._running = 0
        self._since = 0.0
        self._busy = 0.0  # seconds of this stretch
        self._bytes = 0
        self._rates: deque[float] = deque(maxlen=STRETCHES)
        self._latencies: deque[float] = deque(maxlen=SMALLS)

    def __repr__(self) -> str:
        return f"LinkMeter({self.link()}, {self._running} running)"

    def began(self, now: float) -> None:
        """A job has been given to a fetcher."""
        if not self._running:
            self._since = now
        self._running += 1

    def ended(self, now: float, seconds: float, received: int, quickest: float | None = None) -> None:
        """It is over after so long, and so much was received; nothing where it failed.

        `quickest`: seconds that the quickest of its parts took, where there were several.
        """
        self._running -= 1
        self._busy += now - self._since
        self._since = now
        self._bytes += received
        if quickest is not None:
            self._latencies.append(quickest)
        elif 0 < received <= SMALL:
            self._latencies.append(seconds)
        if self._busy >= STRETCH:
            self._rates.append(self._bytes / self._busy)
            self._busy, self._bytes = 0.0, 0

    def link(self) -> Link:
        """What is known by now; a guess where nothing is."""
        guess = Link()
        bandwidth = max(self._rates, default=guess.bandwidth)
        return Link(max(bandwidth, 1e5), min(self._latencies, default=guess.latency), guess.request)
