"""A fetcher process: takes jobs from its engine's socket, does them in plain threads, reports what was written.

`python -m mdsfs.engine.fetching.fetcher`, started by `pool`. Memory is bounded by the options: per thread two buffers
of 512 KiB and the frame at hand, eight buffers of 128 KiB for small jobs, one part (4 MiB) read ahead for streams, and
the bytes of two groups of small jobs (1 MiB each). It dies with its engine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import queue
import signal
import socket
import sys
import threading
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mdsfs import logs
from streaming.engine import messages
from streaming.errors import StreamingError, to_wire
from streaming.remote import RemoteOptions, open_remote

from ..child import die_with_parent
from ..memory import BUFFERED
from .fetch import Desk, Done, do
from .groups import GroupSink, do_group
from .jobs import GROUP_THREADS, SMALL_THREADS, GroupJob, HashJob, Job, job_from_wire, kind_of, pieces_to_wire
from .parts import Helpers
from .sink import CancelledError, Sink
from .wire import MOST_FDS, memfd_of, pack, unpack

if TYPE_CHECKING:
    from streaming.remote import Remote

    from .groups import Told

log = logging.getLogger(__name__)


class _Remotes:
    """One remote per source, shared by all threads; their counters together are the process's."""

    def __init__(self) -> None:
        self._remotes: dict[str, Remote] = {}
        self._lock = threading.Lock()

    def get(self, url: str, options: dict[str, Any]) -> Remote:
        key = json.dumps([url, options], sort_keys=True)
        with self._lock:
            if key not in self._remotes:
                self._remotes[key] = open_remote(url, RemoteOptions(**options))
            return self._remotes[key]

    def totals(self) -> list[int]:
        with self._lock:
            found = [remote.counters.snapshot() for remote in self._remotes.values()]
        return [sum(each[name] for each in found) for name in ("requests", "bytes", "errors", "retries")]


class _Task:
    """One job in this process."""

    def __init__(self, number: int, url: str, options: dict[str, Any], job: Job, sink: Sink | GroupSink) -> None:
        self.number = number
        self.url = url
        self.options = options
        self.job = job
        self.sink = sink


class Fetcher:
    """The process's threads and the socket to the engine."""

    def __init__(self, sock: socket.socket, threads: int, part_size: int) -> None:
        self._sock = sock
        self._remotes = _Remotes()
        self._todo: tuple[queue.SimpleQueue[_Task], ...] = tuple(queue.SimpleQueue() for _ in range(3))
        """Large jobs, small ones, and groups."""
        self._tasks: dict[int, _Task] = {}
        self._lock = threading.Lock()
        self._ending = threading.Lock()
        helpers = Helpers(threads, min(part_size, BUFFERED))
        for number in range(threads * (1 + SMALL_THREADS)):
            small = number >= threads
            work = self._todo[small], Desk(helpers, small=small)
            threading.Thread(target=self._work, args=work, name=f"job-{number}", daemon=True).start()
        for number in range(threads * GROUP_THREADS):
            threading.Thread(target=self._work_on_groups, name=f"group-{number}", daemon=True).start()

    def serve(self) -> None:
        """Take requests until the engine is gone."""
        while True:
            packet, fds = messages.receive(self._sock, most=MOST_FDS)
            if not packet:
                return
            message, fds = unpack(packet, fds)
            if message["op"] == "run":
                self._take(message, fds)
            elif message["op"] == "prepare":
                threading.Thread(target=self._prepare, args=(message["url"], message["options"]), daemon=True).start()
            else:
                self._cancel(int(message["id"]))

    def _take(self, message: dict[str, Any], fds: list[int]) -> None:
        number, job = int(message["id"]), job_from_wire(message["job"])

        def report(extents: list[tuple[int, int]], etag: str | None) -> None:
            self._tell({"id": number, "extents": extents} | ({"etag": etag} if etag else {}))

        sink = GroupSink(fds) if isinstance(job, GroupJob) else Sink(fds[0] if fds else -1, report)
        task = _Task(number, message["url"], message["options"], job, sink)
        with self._lock:
            self._tasks[number] = task
        self._todo[kind_of(job)].put(task)

    def _cancel(self, number: int) -> None:
        with self._lock:
            task = self._tasks.get(number)
        if task is not None:  # otherwise its end is on the way
            task.sink.fence()
            self._tell({"id": number, "fenced": True})

    def _prepare(self, url: str, options: dict[str, Any]) -> None:
        with contextlib.suppress(StreamingError):  # the first job will hear it again, and tell
            self._remotes.get(url, options).prepare()  # of its bucket: datasets below the URL share it

    # ---- threads -----------------------------------------------------------------------------------------------------

    def _work(self, todo: queue.SimpleQueue[_Task], desk: Desk) -> None:
        while True:
            task = todo.get()
            done, error = self._attempt(task, desk)
            assert isinstance(task.sink, Sink)
            fds = [memfd_of("seek table", done.table)] if done and done.table is not None else []
            end = _result(done) if done else {"error": to_wire(error or CancelledError("cancelled"))}
            self._end(task, {"extents": task.sink.rest(), "end": end}, fds)

    def _end(self, task: _Task, said: dict[str, Any], fds: list[int] | None = None) -> None:
        task.sink.close()
        with self._lock:
            del self._tasks[task.number]
        # Totals must not go backwards on their way to the engine.
        with self._ending:
            self._tell({"id": task.number, "totals": self._remotes.totals()} | said, fds)

    def _work_on_groups(self) -> None:
        while True:
            task = self._todo[2].get()

            def report(told: Told, number: int = task.number) -> None:
                self._tell({"id": number, "parts": told})

            assert isinstance(task.job, GroupJob)
            assert isinstance(task.sink, GroupSink)
            end: dict[str, Any] = {"parts": [], "bytes": 0, "quickest": None}
            try:
                end = do_group(task.job, self._remotes.get(task.url, task.options), task.sink, report)
            except (StreamingError, CancelledError) as error:
                log.debug("a group of %d parts ended early: %s", len(task.job.parts), error)
            except Exception:
                log.exception("a group of %d parts failed", len(task.job.parts))
            self._end(task, {"parts": end.pop("parts"), "end": end})

    def _attempt(self, task: _Task, desk: Desk) -> tuple[Done | None, Exception | None]:
        assert not isinstance(task.job, GroupJob)
        assert isinstance(task.sink, Sink)
        try:
            if task.sink.fenced:
                raise CancelledError
            remote = None if isinstance(task.job, HashJob) else self._remotes.get(task.url, task.options)
            return do(task.job, remote, task.sink, desk), None
        except (StreamingError, CancelledError) as error:
            return None, error
        except Exception as error:
            # A thread that ended here would take its job, and one place for all later ones, with it.
            if not task.sink.fenced:
                # not the job itself: its frames would fill megabytes of the log
                log.exception("%s of %s failed", type(task.job).__name__, task.job.key)
            return None, error

    def _tell(self, message: dict[str, Any], fds: list[int] | None = None) -> None:
        packet, more = pack(message)
        try:
            messages.send(self._sock, packet, [*(fds or ()), *more])
        except OSError:
            os._exit(1)  # the engine is gone: nobody wants the rest
        finally:
            messages.close_fds([*(fds or ()), *more])


def _result(done: Done) -> dict[str, Any]:
    # What the engine's side adds: counters from the totals, the table from its descriptor.
    found = asdict(done.result)
    for name in ("requests", "retries", "errors", "seek_table"):
        del found[name]
    found["edges"] = pieces_to_wire(done.result.edges)
    return found


def main(argv: list[str] | None = None) -> int:
    """The process."""
    parser = argparse.ArgumentParser(prog="mdsfs.engine.fetching.fetcher", description=__doc__)
    for name in ("fd", "parent", "threads", "part-size"):
        parser.add_argument(f"--{name}", type=int, required=True)
    options = parser.parse_args(argv)
    die_with_parent(options.parent)
    # Ctrl-C and a service manager's stop reach the whole group; when to end is the engine's business.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logs.start_child("fetcher")
    sock = socket.socket(fileno=options.fd)
    sock.setblocking(True)
    Fetcher(sock, options.threads, options.part_size).serve()
    sys.stderr.flush()
    os._exit(0)  # without waiting for threads that are stuck in reads


if __name__ == "__main__":
    main()
