"""A job in the plan: its track, with how far everything was asked for, and what is to be asked for again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .calendar import Calendar
    from .epoch import Stream
    from .regime import Regime
    from .track import Prepared, Track

__all__ = ["JobState", "PlannedJob"]


@dataclass(frozen=True, slots=True)
class JobState:
    """Where a job is, for people."""

    epoch: int | None
    position: int
    """Samples of that epoch that all readers of the host have read, about."""
    horizon: int
    """How many samples ahead of that everything has been asked for."""
    known: int
    """How many samples ahead of that the order is known."""
    ahead_bytes: int
    """About how many bytes the horizon is away."""
    regimes: Mapping[int, Regime]
    """By dataset."""


class PlannedJob:
    """A track with what the planner remembers of it."""

    def __init__(self, name: str, track: Track, streams: Mapping[int, Sequence[Stream]]) -> None:
        self.name, self.track, self.streams = name, track, streams
        self.near = self.far = 0
        """Keys up to which was asked for what is read soon, sample by sample, and for all that is to be here."""
        self.missed: list[tuple[int, int, int]] = []
        """A heap of (key, dataset, sample) before the keys that were asked for in vain, or taken away since."""
        self.calendars: dict[tuple[int, bool], Calendar] = {}
        """By dataset, and whether the units are shards."""
        self.given, self.began = 0.0, 0
        self.stuck = False
        """There was no room for what it asked for: nothing is asked for again before a reader has gone on."""

    def __repr__(self) -> str:
        return f"PlannedJob({self.name}, {self.track})"

    @property
    def epoch(self) -> Prepared | None:
        """The last one that is known."""
        return next(reversed(self.track.epochs.values()), None)

    def restart(self) -> None:
        """Look at everything again from the front on."""
        self.near = self.far = self.began = self.track.front
        self.missed.clear()
