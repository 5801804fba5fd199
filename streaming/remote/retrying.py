"""Owns how long we keep trying: pauses that grow and are spread, within a number of attempts and a time."""

from __future__ import annotations

import random
import time

FIRST_PAUSE = 0.25
LONGEST_PAUSE = 8.0


class Attempts:
    """The budget of one step. `spend` is called after a failure and says how long to pause, or that it is over."""

    __slots__ = ("_deadline", "_failures", "_first", "_limit")

    def __init__(
        self,
        limit: int,
        total: float,
        deadline: float | None = None,
        failures: int = 0,
        *,
        first_pause: float = FIRST_PAUSE,
    ) -> None:
        self._limit = limit
        self._first = first_pause
        end = time.monotonic() + total
        self._deadline = end if deadline is None else min(end, deadline)
        self._failures = failures

    def remaining(self) -> float:
        """Seconds until the step has to be done; negative when it is late."""
        return self._deadline - time.monotonic()

    def spend(self, asked: float | None = None) -> float | None:
        """The pause before the next attempt, `asked` being what the server wants; None when nothing is left."""
        self._failures += 1
        if self._failures >= self._limit:
            return None
        pause = pause_after(self._failures, random.random(), self._first)
        if asked is not None:
            pause = max(pause, min(asked, LONGEST_PAUSE))
        return pause if pause < self.remaining() else None


def pause_after(failures: int, chance: float, first: float = FIRST_PAUSE) -> float:
    """Between half and the whole of a doubling pause, so that many clients do not come back together."""
    whole: float = min(first * 2 ** (failures - 1), LONGEST_PAUSE)
    return whole * (0.5 + 0.5 * chance)
