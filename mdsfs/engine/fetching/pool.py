"""The engine's side of the fetchers: starts them, gives them jobs, hears what they wrote, starts them again.

`run` is all that the rest of the engine needs. A job that waits in the queue holds nothing; one whose fetcher dies is
given to another, for the version of the object that was seen first. Which job is next is decided in `dispatch`; the
other side is `fetcher`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trio

from mdsfs.metrics.timings import Timings
from streaming.engine import messages
from streaming.errors import EngineError, StreamingError, from_wire
from streaming.mds.seekable import SeekTable

from ..health import Health
from .dispatch import Dispatcher
from .fetcherchild import NOTHING, FetcherChild
from .jobs import (
    GROUP_PARTS,
    GROUP_THREADS,
    SMALL_THREADS,
    GroupJob,
    Job,
    JobResult,
    ProbeJob,
    object_of,
    pieces_from_wire,
)
from .linkmeter import LinkMeter
from .ticket import MAX_LIVES, Ticket
from .wire import read_all, unpack

if TYPE_CHECKING:
    from collections.abc import Callable

    from streaming.remote import RemoteOptions

    from .fetcherchild import Totals
    from .ticket import Told

__all__ = ["AHEAD", "DEFAULT_PART_SIZE", "DEFAULT_THREADS", "DEMAND", "FetcherPool", "PoolStatistics"]

log = logging.getLogger(__name__)

DEMAND, AHEAD = 0, 1
DEFAULT_THREADS = 8
# Ranged gets of a stream: a request's latency of tens of milliseconds is small beside the time of 16 MiB, and so is
# what a request costs the engine and its fetchers (2 to 3 ms of CPU).
DEFAULT_PART_SIZE = 16 << 20
# A fetcher that dies before it did anything (its import fails, say) is started again after 0.1 s, 0.2 s … up to this.
LONGEST_PAUSE = 5.0


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """What the fetchers have done since the engine started, and do now. `bytes` were received from stores."""

    requests: int
    bytes: int
    errors: int
    retries: int
    running: int
    queued: int
    processes: int
    restarts: int


class FetcherPool:
    """`processes` fetchers of `threads` threads each, and more for small jobs. `serve` keeps them running; `run` waits
    for a result.

    Of one object at most half of all threads run at the same time, so that a stuck one does not stop the others.
    """

    def __init__(
        self,
        processes: int = 1,
        threads: int = DEFAULT_THREADS,
        part_size: int = DEFAULT_PART_SIZE,
        *,
        timings: Timings | None = None,
        health: Health | None = None,
    ) -> None:
        """`timings` and `health` hear of every job's end; those of nobody else where none are given."""
        self.timings = timings or Timings()
        self.health = health or Health()
        self.meter = LinkMeter()
        self.processes = processes
        self.threads = threads
        self.part_size = part_size
        self._queues: tuple[Dispatcher[Ticket], ...] = (
            Dispatcher(max(1, processes * threads // 2)),
            Dispatcher(max(1, processes * threads * SMALL_THREADS // 2)),
            Dispatcher(processes * threads),
        )
        self._fetchers: list[FetcherChild] = []
        self._tickets: set[Ticket] = set()
        self._numbers = itertools.count(1)
        self._dead: Totals = NOTHING
        self._restarts = 0

    def __repr__(self) -> str:
        return f"FetcherPool(processes={len(self._fetchers)}, {self._queues})"

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the fetchers running until cancelled; then they are killed, and every open `run` fails."""
        try:
            async with trio.open_nursery() as nursery:
                for _ in range(self.processes):
                    await nursery.start(self._keep_one_running)
                task_status.started()
        finally:
            for ticket in list(self._tickets):
                self._queues[ticket.kind].remove(ticket)
                ticket.end(EngineError("the engine is stopping"))
                ticket.assigned.set()

    async def run(
        self,
        url: str,
        options: RemoteOptions,
        job: Job,
        fd: int = -1,
        *,
        priority: int = DEMAND,
        on_extent: Callable[[int, int], None] | None = None,
        on_etag: Callable[[str], None] | None = None,
    ) -> JobResult:
        """Have a fetcher do a job with this descriptor (-1: none), which the caller keeps open until the end.

        `on_extent(offset, length)` says what was written into the file, in whole blocks as far as the job began on
        one; `on_etag` which version the store named for a job that named none, before the first extent. Cancelled, it
        returns when it is certain that nothing more is written. Raises what the fetcher met, an error of
        streaming.errors.
        """
        ticket = self._ticket(url, options, job, [fd] if fd >= 0 else [], priority)
        ticket.on_extent, ticket.on_etag = on_extent, on_etag
        return await self._run(ticket)

    async def run_group(
        self,
        url: str,
        options: RemoteOptions,
        job: GroupJob,
        fds: list[int],
        *,
        priority: int,
        on_parts: Callable[[list[Told]], None],
    ) -> None:
        """Have a fetcher do a group; as `run`, but that `on_parts` says which parts are written, and nothing of others.

        The descriptors, one for each file that the parts name, are the caller's, which keeps them open until the end.
        """
        ticket = self._ticket(url, options, job, fds, priority)
        ticket.on_parts = on_parts
        await self._run(ticket)

    def _ticket(self, url: str, options: RemoteOptions, job: Job, fds: list[int], priority: int) -> Ticket:
        ticket = Ticket(next(self._numbers), url, _as_dict(options), job, fds)
        ticket.priority = priority
        return ticket

    async def _run(self, ticket: Ticket) -> JobResult:
        url, job = ticket.url, ticket.job
        self._tickets.add(ticket)
        try:
            with self.timings.timed("fetch_seconds", "kind", type(job).__name__.removesuffix("Job").lower()):
                while ticket.outcome is None:
                    await self._attempt(ticket)
        finally:
            self._tickets.discard(ticket)
        if isinstance(ticket.outcome, StreamingError):
            self.health.not_fetched(url, ticket.outcome)
            raise ticket.outcome
        if ticket.outcome.bytes:
            self.health.fetched(url)
        return ticket.outcome

    async def prepare(self, url: str, options: RemoteOptions) -> None:
        """Tell the fetchers what they will be asked for soon."""
        message = {"op": "prepare", "url": url, "options": _as_dict(options)}
        for fetcher in list(self._fetchers):
            await fetcher.send(message)

    def statistics(self) -> PoolStatistics:
        """Counters over all fetchers, also those that died."""
        totals = _sum(self._dead, *(fetcher.totals for fetcher in self._fetchers))
        return PoolStatistics(
            *totals,
            running=sum(queue.running for queue in self._queues),
            queued=sum(len(queue) for queue in self._queues),
            processes=len(self._fetchers),
            restarts=self._restarts,
        )

    @property
    def most_running(self) -> int:
        """Jobs for which there are threads, each part of a group counted."""
        return self.processes * self.threads * (1 + SMALL_THREADS + GROUP_PARTS)

    def pids(self) -> list[int]:
        """The fetchers that run now."""
        return [fetcher.process.pid for fetcher in self._fetchers]

    # ---- one job -----------------------------------------------------------------------------------------------------

    async def _attempt(self, ticket: Ticket) -> None:
        """Through the queue and one fetcher. Without an outcome afterwards, that fetcher died."""
        again = ticket.lives < MAX_LIVES
        ticket.reset()
        queued = time.perf_counter()
        self._queues[ticket.kind].add(ticket, ticket.target, ticket.priority, first=again)
        self._dispatch()
        try:
            await ticket.assigned.wait()
            self.timings.of("fetch_queue_seconds").observe(time.perf_counter() - queued)
            if ticket.fetcher is not None:
                await self._follow(ticket, ticket.fetcher)
        except trio.Cancelled:
            await self._abandon(ticket)
            raise
        if ticket.outcome is None:
            ticket.lives -= 1
            if not ticket.lives:
                what = object_of(ticket.job) or "a cache file"
                ticket.outcome = EngineError(f"{MAX_LIVES} fetchers died while working on {what}: see the engine's log")

    async def _follow(self, ticket: Ticket, fetcher: FetcherChild) -> None:
        """One job in its fetcher, with a look at the clock before and after."""
        begun = time.perf_counter()
        self.meter.began(begun)
        try:
            await fetcher.start_job(ticket)
            await ticket.ended.wait()
        finally:
            found = ticket.outcome if isinstance(ticket.outcome, JobResult) else JobResult()
            now = time.perf_counter()
            self.meter.ended(now, now - begun, found.bytes, found.quickest)

    async def _abandon(self, ticket: Ticket) -> None:
        ticket.on_extent = ticket.on_etag = ticket.on_parts = None
        if self._queues[ticket.kind].remove(ticket) or ticket.fetcher is None:
            return
        if not ticket.sent:
            self._release(ticket.fetcher, ticket)
            return
        with trio.CancelScope(shield=True):
            await ticket.fetcher.send({"op": "cancel", "id": ticket.number})
            await ticket.fenced.wait()

    def _dispatch(self) -> None:
        for kind, queue in enumerate(self._queues):
            self._dispatch_from(queue, kind, self.threads * (1, SMALL_THREADS, GROUP_THREADS)[kind])

    def _dispatch_from(self, queue: Dispatcher[Ticket], kind: int, threads: int) -> None:
        while True:
            free = [fetcher for fetcher in self._fetchers if fetcher.busy[kind] < threads]
            if not free or (ticket := queue.next()) is None:
                return
            fetcher = min(free, key=lambda each: each.busy[kind])
            fetcher.running[ticket.number] = ticket
            fetcher.busy[kind] += 1
            ticket.fetcher = fetcher
            ticket.assigned.set()

    def _release(self, fetcher: FetcherChild, ticket: Ticket) -> None:
        if fetcher.running.pop(ticket.number, None) is not None:
            fetcher.busy[ticket.kind] -= 1
            self._queues[ticket.kind].finished(ticket.target)
            self._dispatch()

    # ---- one fetcher -------------------------------------------------------------------------------------------------

    async def _keep_one_running(self, *, task_status: trio.TaskStatus[None]) -> None:
        pause, begun = 0.0, False
        while True:
            fetcher = FetcherChild.start(self.threads, self.part_size)
            self._fetchers.append(fetcher)
            self._dispatch()
            if not begun:
                begun = True
                task_status.started()
            try:
                await self._listen(fetcher)
            finally:
                self._bury(fetcher)
            self._restarts += 1
            pause = 0.0 if fetcher.worked else min(LONGEST_PAUSE, max(0.1, 2 * pause))
            log.warning(
                "fetcher pid=%d died: starting another in %.1f s",
                fetcher.process.pid,
                pause,
                extra={"event": "fetcher-died"},
            )
            await trio.sleep(pause)

    async def _listen(self, fetcher: FetcherChild) -> None:
        while True:
            await trio.lowlevel.wait_readable(fetcher.sock)
            # Without a turn for the others in between: what one wake-up brought is a few packets.
            with contextlib.suppress(BlockingIOError):
                while True:
                    try:
                        packet, fds = messages.receive(fetcher.sock)
                    except ConnectionError:
                        return
                    if not packet:
                        return
                    self._heard(fetcher, *unpack(packet, fds))

    def _heard(self, fetcher: FetcherChild, message: dict[str, Any], fds: list[int]) -> None:
        try:
            fetcher.worked = True
            ticket = fetcher.running.get(message.get("id", 0))
            if ticket is None:
                return
            if "etag" in message:
                ticket.pin(message["etag"])
            if ticket.on_extent is not None:
                for offset, length in message.get("extents", ()):
                    ticket.on_extent(offset, length)
            ticket.heard_of(message.get("parts", ()))
            if "fenced" in message:
                ticket.fenced.set()
            if "end" in message:
                self._ended(fetcher, ticket, message, fds)
        finally:
            messages.close_fds(fds)

    def _ended(self, fetcher: FetcherChild, ticket: Ticket, message: dict[str, Any], fds: list[int]) -> None:
        before, fetcher.totals = fetcher.totals, tuple(message["totals"])
        delta = [now - then for now, then in zip(fetcher.totals, before, strict=True)]
        if "error" in message["end"]:
            outcome: JobResult | StreamingError = from_wire(message["end"]["error"])
        elif isinstance(ticket.job, GroupJob):
            outcome = JobResult(**message["end"], requests=delta[0], errors=delta[2], retries=delta[3])
        else:
            found = message["end"] | {"edges": pieces_from_wire(message["end"]["edges"])}
            outcome = JobResult(**found, requests=delta[0], errors=delta[2], retries=delta[3])
            if fds and isinstance(ticket.job, ProbeJob):
                table = SeekTable.parse(read_all(fds[0]), ticket.job.stored)
                outcome = dataclasses.replace(outcome, seek_table=table)
        ticket.end(outcome)
        self._release(fetcher, ticket)

    def _bury(self, fetcher: FetcherChild) -> None:
        self._fetchers.remove(fetcher)
        fetcher.stop()
        self._dead = _sum(self._dead, fetcher.totals)
        for ticket in list(fetcher.running.values()):
            self._queues[ticket.kind].finished(ticket.target)
            ticket.end(None)
        fetcher.running.clear()


@functools.lru_cache(64)
def _as_dict(options: RemoteOptions | None) -> dict[str, Any]:
    return dataclasses.asdict(options) if options else {}


def _sum(*totals: Totals) -> Totals:
    requests, received, errors, retries = (sum(column) for column in zip(*totals, strict=True))
    return requests, received, errors, retries
