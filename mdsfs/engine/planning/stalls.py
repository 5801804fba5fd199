"""Stalls: what readers of a job have waited for, and why. Pure: times and causes are told.

A reader stalls when it asks for something that a plan covers and that is not here. The cause is what was true when it
asked: the link was full (`bandwidth`), or was not and the bytes were on their way or had just been asked for
(`latency`); they could not be fetched earlier for want of room (`limit`); they are part of something that has to be
decompressed from its start (`decompression`); or nobody could have known (`unplanned read`).
"""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["Cause", "Stall", "Stalls"]

Cause = Literal["bandwidth", "latency", "limit", "decompression", "unplanned read"]

# The last ones are shown one by one; all of them are counted.
SHOWN = 32


@dataclass(frozen=True, slots=True)
class Stall:
    """One wait. `sample` is counted within the dataset, None where it is not known; `reader` is a process id."""

    reader: int
    shard: str
    sample: int | None
    cause: Cause
    seconds: float


class Stalls:
    """Those of one job."""

    def __init__(self) -> None:
        self._last: deque[Stall] = deque(maxlen=SHOWN)
        self._causes: dict[str, tuple[int, float]] = {}

    def __repr__(self) -> str:
        return f"Stalls({self._causes})"

    def add(self, stall: Stall) -> None:
        """One is over."""
        count, seconds = self._causes.get(stall.cause, (0, 0.0))
        self._causes[stall.cause] = count + 1, seconds + stall.seconds
        self._last.append(stall)

    def to_json(self) -> dict[str, Any]:
        """Counts and seconds by cause, and the last ones."""
        return {
            "causes": {
                cause: {"count": count, "seconds": round(seconds, 6)}
                for cause, (count, seconds) in sorted(self._causes.items())
            },
            "last": [asdict(each) | {"seconds": round(each.seconds, 6)} for each in self._last],
        }
