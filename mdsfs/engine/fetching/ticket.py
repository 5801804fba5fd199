"""One job on its way through the pool: the queue, a fetcher, and maybe another one. No I/O."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import trio

from .jobs import GroupJob, HashJob, Job, JobResult, job_to_wire, kind_of, object_of, pieces_from_wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from streaming.errors import StreamingError

    from .fetcherchild import FetcherChild
    from .jobs import Piece

__all__ = ["MAX_LIVES", "Ticket", "Told"]

# A job that three fetchers died of would kill the fourth as well.
MAX_LIVES = 3

Told = tuple[int, "tuple[Piece, ...]"]
"""A part of a group that is written, and what else its frames hold."""


class Ticket:
    """One `run` on its way through the queue, a fetcher, and maybe another one."""

    def __init__(self, number: int, url: str, options: dict[str, Any], job: Job, fds: list[int]) -> None:
        self.number = number
        self.url = url
        self.options = options
        self.job = job
        self.fds = fds
        self.kind = kind_of(job)
        self.priority = 0
        self.on_extent: Callable[[int, int], None] | None = None
        self.on_etag: Callable[[str], None] | None = None
        self.on_parts: Callable[[list[Told]], None] | None = None
        self.lives = MAX_LIVES
        self.outcome: JobResult | StreamingError | None = None
        self.reset()

    def reset(self) -> None:
        """As before the first fetcher."""
        self.fetcher: FetcherChild | None = None
        self.sent = False
        self.assigned = trio.Event()
        self.ended = trio.Event()
        """It is over: done, failed, or its fetcher died (`outcome` None)."""
        self.fenced = trio.Event()
        """No byte of it is written any more, whatever else it still waits for."""

    @property
    def target(self) -> object:
        """What the job may get stuck on; of groups those that nobody waits for count as one."""
        if isinstance(self.job, GroupJob):
            return "ahead" if self.priority else self.number
        key = object_of(self.job)
        return self.number if key is None else (self.url, key)

    def message(self) -> dict[str, Any]:
        """The request to a fetcher."""
        return {"op": "run", "id": self.number, "url": self.url, "options": self.options, "job": job_to_wire(self.job)}

    def pin(self, etag: str) -> None:
        """The store named a version: if another fetcher has to go on, it is with that one."""
        if not isinstance(self.job, HashJob | GroupJob) and self.job.etag is None:
            self.job = dataclasses.replace(self.job, etag=etag)
            if self.on_etag is not None:
                self.on_etag(etag)

    def heard_of(self, parts: list[tuple[int, list[tuple[int, str]]]]) -> None:
        """Parts of a group are written: if another fetcher has to go on, it is with the others."""
        if self.on_parts is None or not parts:
            return
        assert isinstance(self.job, GroupJob)
        done = {number for number, _ in parts}
        self.job = GroupJob(tuple(each for each in self.job.parts if each.number not in done))
        self.on_parts([(number, pieces_from_wire(edges)) for number, edges in parts])

    def end(self, outcome: JobResult | StreamingError | None) -> None:
        """Tell `run`."""
        self.outcome = outcome
        self.fenced.set()
        self.ended.set()
