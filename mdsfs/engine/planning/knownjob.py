"""A job as the plan knows it: its orders, its datasets, what its readers have waited for, and how all that is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .stalls import Stalls

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from mdsfs.plan.epoch import Stream
    from mdsfs.plan.planner import JobState

    from .hints import Job

__all__ = ["KnownJob", "streams_of"]


class KnownJob:
    """A job with what the planner has been told of it."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.epochs: dict[int, NDArray[np.int64]] = {}
        """Orders that the planner has, or is about to get."""
        self.numbers: set[int] = set()
        """Datasets."""
        self.stalls = Stalls()
        self.warnings: list[str] = []

    def __repr__(self) -> str:
        return f"KnownJob({self.job.key}, {len(self.epochs)} epochs)"

    def to_json(self, state: JobState, urls: Mapping[int, str]) -> dict[str, Any]:
        """What the status shows of a job's plan; `urls`: of the datasets that are planned."""
        regimes = [
            {
                "url": urls[number],
                "regime": regime.kind,
                "reason": regime.reason,
                "changes_at_bytes": regime.changes_at_bytes,
            }
            for number, regime in state.regimes.items()
            if number in urls
        ]
        return {
            "epoch": state.epoch,
            "position": state.position,
            "horizon": state.horizon,
            "known": state.known,
            "ahead_bytes": state.ahead_bytes,
            "datasets": regimes,
            "stalls": self.stalls.to_json(),
            "warnings": self.warnings,
        }


def streams_of(job: Job) -> dict[int, list[Stream]]:
    """Per dataset its parts of the job's ids."""
    found: dict[int, list[Stream]] = {}
    for place, dataset in enumerate(job.datasets):
        if dataset is not None:
            first, stop = int(job.first_ids[place]), int(job.first_ids[place + 1])
            found.setdefault(dataset.number, []).append((dataset.number, first, stop - first))
    return found
