"""The engine's side of the fetchers: starts them, gives them jobs, hears what they wrote, starts them again.

`run` is all that the rest of the engine needs. A job that waits in the queue holds nothing; one whose fetcher dies is
given to another, for the version of the object that was seen first. Which job is next is decided in `dispatch`; the
other side is `fetcher`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trio

from mdsfs.metrics.timings import Timings
from streaming.engine import messages
from streaming.errors import EngineError, StreamingError, from_wire
from streaming.mds.seekable import SeekTable

from .child import environment
from .dispatch import Dispatcher
from .health import Health
from .jobs import SMALL_THREADS, HashJob, Job, JobResult, ProbeJob, is_small, job_to_wire, object_of, pieces_from_wire
from .linkmeter import LinkMeter
from .wire import pack, read_all, unpack

if TYPE_CHECKING:
    from collections.abc import Callable

    from streaming.remote import RemoteOptions

__all__ = ["AHEAD", "DEFAULT_PART_SIZE", "DEFAULT_THREADS", "DEMAND", "FetcherPool", "PoolStatistics"]

log = logging.getLogger(__name__)

DEMAND, AHEAD = 0, 1
DEFAULT_THREADS = 8
# Ranged gets of a stream: a request's latency of tens of milliseconds is small beside the time of 4 MiB.
DEFAULT_PART_SIZE = 4 << 20
# A job that three fetchers died of would kill the fourth as well.
MAX_LIVES = 3
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


Totals = tuple[int, int, int, int]  # requests, bytes, errors, retries
_NOTHING: Totals = (0, 0, 0, 0)


class _Ticket:
    """One `run` on its way through the queue, a fetcher, and maybe another one."""

    def __init__(self, number: int, url: str, options: dict[str, Any], job: Job, fd: int) -> None:
        self.number = number
        self.url = url
        self.options = options
        self.job = job
        self.fd = fd
        self.priority = DEMAND
        self.on_extent: Callable[[int, int], None] | None = None
        self.on_etag: Callable[[str], None] | None = None
        self.lives = MAX_LIVES
        self.outcome: JobResult | StreamingError | None = None
        self.reset()

    def reset(self) -> None:
        """As before the first fetcher."""
        self.fetcher: _Fetcher | None = None
        self.sent = False
        self.assigned = trio.Event()
        self.ended = trio.Event()
        """It is over: done, failed, or its fetcher died (`outcome` None)."""
        self.fenced = trio.Event()
        """No byte of it is written any more, whatever else it still waits for."""

    @property
    def small(self) -> bool:
        """Whether most of its time is waiting for the first byte: then very many may run beside each other."""
        return is_small(self.job)

    @property
    def target(self) -> object:
        """What the job may get stuck on."""
        key = object_of(self.job)
        return self.number if key is None else (self.url, key)

    def message(self) -> dict[str, Any]:
        """The request to a fetcher."""
        return {"op": "run", "id": self.number, "url": self.url, "options": self.options, "job": job_to_wire(self.job)}

    def pin(self, etag: str) -> None:
        """The store named a version: if another fetcher has to go on, it is with that one."""
        if not isinstance(self.job, HashJob) and self.job.etag is None:
            self.job = dataclasses.replace(self.job, etag=etag)
            if self.on_etag is not None:
                self.on_etag(etag)

    def end(self, outcome: JobResult | StreamingError | None) -> None:
        """Tell `run`."""
        self.outcome = outcome
        self.fenced.set()
        self.ended.set()


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
        self._queues: tuple[Dispatcher[_Ticket], ...] = (
            Dispatcher(max(1, processes * threads // 2)),
            Dispatcher(max(1, processes * threads * SMALL_THREADS // 2)),
        )
        self._fetchers: list[_Fetcher] = []
        self._tickets: set[_Ticket] = set()
        self._numbers = itertools.count(1)
        self._dead: Totals = _NOTHING
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
                self._queues[ticket.small].remove(ticket)
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
        ticket = _Ticket(next(self._numbers), url, dataclasses.asdict(options) if options else {}, job, fd)
        ticket.priority, ticket.on_extent, ticket.on_etag = priority, on_extent, on_etag
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
        if not isinstance(job, HashJob):
            self.health.fetched(url)
        return ticket.outcome

    async def prepare(self, url: str, options: RemoteOptions) -> None:
        """Tell the fetchers what they will be asked for soon."""
        message = {"op": "prepare", "url": url, "options": dataclasses.asdict(options)}
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
        """Jobs for which there are threads."""
        return self.processes * self.threads * (1 + SMALL_THREADS)

    def pids(self) -> list[int]:
        """The fetchers that run now."""
        return [fetcher.process.pid for fetcher in self._fetchers]

    # ---- one job -----------------------------------------------------------------------------------------------------

    async def _attempt(self, ticket: _Ticket) -> None:
        """Through the queue and one fetcher. Without an outcome afterwards, that fetcher died."""
        again = ticket.lives < MAX_LIVES
        ticket.reset()
        queued = time.perf_counter()
        self._queues[ticket.small].add(ticket, ticket.target, ticket.priority, first=again)
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

    async def _follow(self, ticket: _Ticket, fetcher: _Fetcher) -> None:
        """One job in its fetcher, with a look at the clock before and after."""
        begun = time.perf_counter()
        self.meter.began(begun)
        try:
            await fetcher.start_job(ticket)
            await ticket.ended.wait()
        finally:
            received = ticket.outcome.bytes if isinstance(ticket.outcome, JobResult) else 0
            now = time.perf_counter()
            self.meter.ended(now, now - begun, received)

    async def _abandon(self, ticket: _Ticket) -> None:
        ticket.on_extent = ticket.on_etag = None
        if self._queues[ticket.small].remove(ticket) or ticket.fetcher is None:
            return
        if not ticket.sent:
            self._release(ticket.fetcher, ticket)
            return
        with trio.CancelScope(shield=True):
            await ticket.fetcher.send({"op": "cancel", "id": ticket.number})
            await ticket.fenced.wait()

    def _dispatch(self) -> None:
        for small, queue in enumerate(self._queues):
            self._dispatch_from(queue, small, self.threads * (SMALL_THREADS if small else 1))

    def _dispatch_from(self, queue: Dispatcher[_Ticket], small: int, threads: int) -> None:
        while True:
            free = [fetcher for fetcher in self._fetchers if fetcher.busy[small] < threads]
            if not free or (ticket := queue.next()) is None:
                return
            fetcher = min(free, key=lambda each: each.busy[small])
            fetcher.running[ticket.number] = ticket
            fetcher.busy[small] += 1
            ticket.fetcher = fetcher
            ticket.assigned.set()

    def _release(self, fetcher: _Fetcher, ticket: _Ticket) -> None:
        if fetcher.running.pop(ticket.number, None) is not None:
            fetcher.busy[ticket.small] -= 1
            self._queues[ticket.small].finished(ticket.target)
            self._dispatch()

    # ---- one fetcher -------------------------------------------------------------------------------------------------

    async def _keep_one_running(self, *, task_status: trio.TaskStatus[None]) -> None:
        pause, begun = 0.0, False
        while True:
            fetcher = _Fetcher.start(self.threads, self.part_size)
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

    async def _listen(self, fetcher: _Fetcher) -> None:
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

    def _heard(self, fetcher: _Fetcher, message: dict[str, Any], fds: list[int]) -> None:
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
            if "fenced" in message:
                ticket.fenced.set()
            if "end" in message:
                self._ended(fetcher, ticket, message, fds)
        finally:
            messages.close_fds(fds)

    def _ended(self, fetcher: _Fetcher, ticket: _Ticket, message: dict[str, Any], fds: list[int]) -> None:
        before, fetcher.totals = fetcher.totals, tuple(message["totals"])
        delta = [now - then for now, then in zip(fetcher.totals, before, strict=True)]
        if "error" in message["end"]:
            outcome: JobResult | StreamingError = from_wire(message["end"]["error"])
        else:
            found = message["end"] | {"edges": pieces_from_wire(message["end"]["edges"])}
            outcome = JobResult(**found, requests=delta[0], errors=delta[2], retries=delta[3])
            if fds and isinstance(ticket.job, ProbeJob):
                table = SeekTable.parse(read_all(fds[0]), ticket.job.stored)
                outcome = dataclasses.replace(outcome, seek_table=table)
        ticket.end(outcome)
        self._release(fetcher, ticket)

    def _bury(self, fetcher: _Fetcher) -> None:
        self._fetchers.remove(fetcher)
        fetcher.stop()
        self._dead = _sum(self._dead, fetcher.totals)
        for ticket in list(fetcher.running.values()):
            self._queues[ticket.small].finished(ticket.target)
            ticket.end(None)
        fetcher.running.clear()


class _Fetcher:
    """One child process and the socket to it."""

    def __init__(self, process: subprocess.Popen[bytes], sock: socket.socket) -> None:
        self.process = process
        self.sock = sock
        self.running: dict[int, _Ticket] = {}
        self.busy = [0, 0]
        """Jobs that it has: large ones, and small ones."""
        self.totals: Totals = _NOTHING
        self.worked = False
        self._sending = trio.Lock()

    @classmethod
    def start(cls, threads: int, part_size: int) -> _Fetcher:
        """Start one. From the thread that runs the loop: the child dies with the thread that made it."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "mdsfs.engine.fetcher", "--fd", str(theirs.fileno())]
        with theirs:
            process = subprocess.Popen(
                [*command, "--parent", str(os.getpid()), "--threads", str(threads), "--part-size", str(part_size)],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=environment(),
            )
        ours.setblocking(False)
        return cls(process, ours)

    def stop(self) -> None:
        """Kill it: what it was writing is accounted for by whoever gave it the job."""
        self.process.kill()
        self.process.wait()
        trio.lowlevel.notify_closing(self.sock)  # who waits to send would wait for ever
        self.sock.close()

    async def start_job(self, ticket: _Ticket) -> None:
        """Hand over a job and its descriptor. A fetcher that is dead already says so through `ended`."""
        ticket.sent = await self.send(ticket.message(), [ticket.fd] if ticket.fd >= 0 else [])

    async def send(self, message: dict[str, Any], fds: list[int] | None = None) -> bool:
        """Send a message; False when nobody is there any more."""
        packet, more = pack(message)
        try:
            async with self._sending:  # many small jobs fill the socket, and only one task may wait for room in it
                while True:
                    try:
                        messages.send(self.sock, packet, [*(fds or ()), *more])
                        return True
                    except BlockingIOError:
                        await trio.lowlevel.wait_writable(self.sock)
        except (OSError, trio.ClosedResourceError):  # it died, which the listener hears as well
            return False
        finally:
            messages.close_fds(more)


def _sum(*totals: Totals) -> Totals:
    requests, received, errors, retries = (sum(column) for column in zip(*totals, strict=True))
    return requests, received, errors, retries
