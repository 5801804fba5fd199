"""Fetchers that die, jobs that nobody wants any more, objects that are stuck: over a real server and a proxy."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import trio

from mdsfs.engine.fetching.jobs import RangeJob, StreamJob
from mdsfs.engine.fetching.pool import AHEAD, FetcherPool
from streaming.errors import EngineError
from streaming.mds.compression import compress
from streaming.remote import RemoteOptions
from tests.servers import Fault, FaultProxy, StorageServer

from .conftest import MIB, content, running_pool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.trio

DATA = content(4 * MIB)


class Web:
    """Objects on nginx behind the proxy."""

    def __init__(self, server: StorageServer, proxy: FaultProxy) -> None:
        self.put = server.put
        self.url = server.url("data")
        self.faults = proxy
        self.options = RemoteOptions(endpoint_url=proxy.endpoint, anonymous=True, region="us-east-1", read_timeout=60)


@pytest.fixture
def web(nginx: StorageServer) -> Iterator[Web]:
    with FaultProxy(nginx.endpoint) as proxy:
        for name in ("one", "two"):
            nginx.put(f"data/{name}", DATA)
        yield Web(nginx, proxy)
        proxy.clear()


def only_child(pool: FetcherPool) -> int:
    (fetcher,) = pool._fetchers
    return fetcher.process.pid


async def stalled(web: Web, count: int = 1) -> None:
    """Return when so many requests hang in the proxy."""
    with trio.fail_after(60):
        while len(web.faults.seen()) < count:  # of another thread, which has no event of trio's  # noqa: ASYNC110
            await trio.sleep(0.005)


async def test_a_killed_fetcher_is_replaced_and_its_jobs_done_again(web: Web, new_file: Callable[[int], int]) -> None:
    """kill -9 in mid-body: the job ends right, by another process, for the version that was seen first."""
    web.faults.add(Fault("stall", after=2 * MIB + 100, times=1))
    fd, etags = new_file(len(DATA)), []
    written = trio.Event()
    finished = trio.Event()
    async with running_pool() as pool, trio.open_nursery() as nursery:

        async def job() -> None:
            result = await pool.run(
                web.url,
                web.options,
                RangeJob("one", None, 0, len(DATA), 0),
                fd,
                on_extent=lambda *_: written.set(),
                on_etag=etags.append,
            )
            assert result.etag == etags[0]
            finished.set()

        nursery.start_soon(job)
        with trio.fail_after(60):
            await written.wait()
        first = only_child(pool)
        os.kill(first, signal.SIGKILL)
        with trio.fail_after(60):
            await finished.wait()
        assert pool.statistics().restarts == 1
        assert only_child(pool) != first
    assert os.pread(fd, len(DATA), 0) == DATA
    assert len(etags) == 1
    assert web.faults.seen("one")[-1].headers.get("if-match") == etags[0]


async def test_a_job_that_kills_every_fetcher_is_given_up(web: Web, new_file: Callable[[int], int]) -> None:
    """After three deaths it is an error, not a loop."""
    web.faults.add(Fault("hang"))
    async with running_pool() as pool, trio.open_nursery() as nursery:

        async def job() -> None:
            with pytest.raises(EngineError, match="3 fetchers died while working on one"):
                await pool.run(web.url, web.options, RangeJob("one", None, 0, 10, 0), new_file(10))

        nursery.start_soon(job)
        for count in range(1, 4):
            await stalled(web, count)
            os.kill(only_child(pool), signal.SIGKILL)


async def test_after_cancelling_nothing_is_written(web: Web, new_file: Callable[[int], int]) -> None:
    """A cancelled job returns at once, though its server is silent, and whatever comes later stays out of the file."""
    web.faults.add(Fault("stall", after=2 * MIB + 100, times=1))
    fd, written = new_file(len(DATA)), trio.Event()
    async with running_pool() as pool:
        with trio.CancelScope() as scope, trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    lambda: pool.run(
                        web.url,
                        web.options,
                        RangeJob("one", None, 0, len(DATA), 0),
                        fd,
                        on_extent=lambda *_: written.set(),
                    )
                )
                await written.wait()
                scope.cancel()
        os.ftruncate(fd, 0)
        web.faults.clear()
        # the same object again, by the same process: the first job's thread has had every chance
        await pool.run(web.url, web.options, RangeJob("one", None, 0, 4096, 0), fd)
        assert os.fstat(fd).st_size == 4096
        assert pool.statistics().restarts == 0


async def test_a_cancelled_job_in_the_queue_leaves_nothing(web: Web, new_file: Callable[[int], int]) -> None:
    """It was never sent."""
    web.faults.add(Fault("hang", match="one"))
    fd = new_file(10)
    async with running_pool(threads=2) as pool, trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(lambda: pool.run(web.url, web.options, RangeJob("one", None, 0, len(DATA), 0), fd))
        await stalled(web)
        assert (pool.statistics().running, pool.statistics().queued) == (1, 1)
        nursery.cancel_scope.cancel()
    assert len(web.faults.seen("one")) == 1
    assert pool.statistics().queued == 0


async def test_small_jobs_wait_beside_each_other(web: Web, new_file: Callable[[int], int]) -> None:
    """Four of one object at once where one thread is for large jobs: their answers take most of their time."""
    web.faults.add(Fault("hang", match="one"))
    fd = new_file(10)
    async with running_pool(threads=1) as pool, trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(lambda: pool.run(web.url, web.options, RangeJob("one", None, 0, 10, 0), fd))
        await stalled(web, 4)
        assert (pool.statistics().running, pool.statistics().queued) == (4, 1)
        nursery.cancel_scope.cancel()


async def test_a_full_socket_makes_jobs_wait_their_turn(web: Web, new_file: Callable[[int], int]) -> None:
    """A fetcher that does not take its jobs for a while gets all of them later, however many wait to be sent."""
    fd = new_file(1000)
    async with running_pool(threads=4) as pool:
        (fetcher,) = pool._fetchers
        fetcher.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        os.kill(fetcher.process.pid, signal.SIGSTOP)
        async with trio.open_nursery() as nursery:
            for at in range(30):
                job = RangeJob("one", None, at, at + 1, at)
                nursery.start_soon(lambda job=job: pool.run(web.url, web.options, job, fd))
            try:
                with trio.fail_after(60):
                    while not fetcher._sending.statistics().tasks_waiting:
                        await trio.lowlevel.checkpoint()
            finally:
                os.kill(fetcher.process.pid, signal.SIGCONT)
    assert os.pread(fd, 30, 0) == DATA[:30]


async def test_a_stuck_object_does_not_stop_the_others(web: Web, new_file: Callable[[int], int]) -> None:
    """Twenty jobs that hang on one object take half of the threads; the others serve everything else."""
    web.faults.add(Fault("hang", match="one"))
    fd = new_file(len(DATA))
    async with running_pool(threads=4) as pool, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(lambda: pool.run(web.url, web.options, RangeJob("one", None, 0, len(DATA), 0), fd))
        await stalled(web, 2)
        with trio.fail_after(60):
            await pool.run(web.url, web.options, RangeJob("two", None, 0, len(DATA), 0), fd, priority=AHEAD)
        assert os.pread(fd, len(DATA), 0) == DATA
        assert pool.statistics().running == 2
        nursery.cancel_scope.cancel()


async def test_a_stream_uses_several_connections_of_one_version(web: Web, new_file: Callable[[int], int]) -> None:
    """All gets after the first ask for the version that the first was given."""
    data = content(12 * MIB)
    stored = compress("zstd:1", data)
    web.put("data/three", stored)
    fd = new_file(len(data))
    async with running_pool() as pool:
        await pool.run(web.url, web.options, StreamJob("three", None, len(stored), len(data), "zstd:1"), fd)
        statistics = pool.statistics()
    requests = web.faults.seen("three")
    assert os.pread(fd, len(data), 0) == data
    assert len(requests) == -(-len(stored) // MIB)
    assert len({request.headers.get("if-match") for request in requests[1:]} - {None}) == 1
    assert sum(request.sent for request in requests) == len(stored) == statistics.bytes
    assert statistics.requests == len(requests)


@pytest.mark.parametrize("kind", ["reset", "truncate", "status"])
async def test_faults_in_mid_body_are_survived(web: Web, new_file: Callable[[int], int], kind: str) -> None:
    """Resets, truncated bodies and 503s are retried from where they were; the file is right."""
    web.faults.add(Fault(kind, after=MIB + 5, times=2))
    fd = new_file(len(DATA))
    async with running_pool() as pool:
        await pool.run(web.url, web.options, RangeJob("one", None, 0, len(DATA), 0), fd)
        assert pool.statistics().retries >= 1
    assert os.pread(fd, len(DATA), 0) == DATA


async def test_fetchers_end_with_their_pool() -> None:
    """No process outlives the pool that started it."""
    async with running_pool(processes=2) as pool:
        pids = [fetcher.process.pid for fetcher in pool._fetchers]
        assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_fetchers_end_with_a_killed_engine() -> None:
    """kill -9 of the process that has the pool ends its fetchers as well."""
    code = """
import trio
from mdsfs.engine.fetching.pool import FetcherPool
async def main():
    async with trio.open_nursery() as nursery:
        pool = FetcherPool()
        await nursery.start(pool.serve)
        print(pool._fetchers[0].process.pid, flush=True)
trio.run(main)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as engine:  # noqa: ASYNC220, nothing else runs
        assert engine.stdout is not None
        fetcher = os.pidfd_open(int(engine.stdout.readline()))
        engine.kill()
        with trio.fail_after(60):
            await trio.lowlevel.wait_readable(fetcher)
        os.close(fetcher)
