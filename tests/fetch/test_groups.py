"""Groups of small jobs in real fetchers: what is reported is written, what is not is somebody else's to fetch."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import numpy as np
import pytest
import trio

from mdsfs.engine.fetching.jobs import FramesJob, GroupJob, Part, RangeJob
from mdsfs.engine.fetching.pool import AHEAD
from mdsfs.plan.link import Link
from streaming.mds.seekable import SeekTable, compress_seekable
from streaming.remote import open_remote
from tests.servers import Fault

from .conftest import running_pool
from .test_pool import DATA, Web, only_child, stalled, web

if TYPE_CHECKING:
    from collections.abc import Callable

    from mdsfs.engine.fetching.pool import FetcherPool
    from mdsfs.engine.fetching.ticket import Told

    NewFile = Callable[[int], int]

__all__ = ["web"]

pytestmark = pytest.mark.trio

STEP, SIZE = 32 << 10, 12 << 10


def parts_of(web: Web, count: int) -> GroupJob:
    """Ranges that lie apart, of two objects in turn, each in its own file."""
    remote = open_remote(web.url, web.options)
    etags = {key: remote.stat(key).etag for key in ("one", "two")}
    found = []
    for number in range(count):
        key, start = ("one", "two")[number % 2], number * STEP
        found.append(Part(number, number % 2, RangeJob(key, etags[key], start, start + SIZE, start, len(DATA))))
    return GroupJob(tuple(found))


async def run(pool: FetcherPool, web: Web, job: GroupJob, fds: list[int]) -> list[int]:
    """The parts that were reported, each of which is in its file then."""
    found: list[int] = []

    def written(parts: list[Told]) -> None:
        found.extend(number for number, _ in parts)

    await pool.run_group(web.url, web.options, job, fds, priority=AHEAD, on_parts=written)
    assert len(set(found)) == len(found)
    for part in job.parts:
        if part.number in found and isinstance(part.job, RangeJob):
            assert os.pread(fds[part.file], SIZE, part.job.at) == DATA[part.job.start : part.job.stop]
    return sorted(found)


async def test_every_part_lands_in_its_file(web: Web, new_file: NewFile) -> None:
    """Each by one request, and the link's latency is known from them."""
    job, fds = parts_of(web, 50), [new_file(len(DATA)), new_file(len(DATA))]
    async with running_pool() as pool:
        assert await run(pool, web, job, fds) == list(range(50))
        assert pool.statistics().requests == 50
        assert pool.statistics().bytes == 50 * SIZE
        assert pool.meter.link().latency != Link().latency


async def test_a_part_that_fails_is_not_reported(web: Web, new_file: NewFile) -> None:
    """An object that is not there, and one of another version: the others are written."""
    job, fds = parts_of(web, 6), [new_file(len(DATA)), new_file(len(DATA))]
    wrong = {1: RangeJob("nowhere", '"x"', 0, SIZE, 0), 4: RangeJob("one", '"other"', 0, SIZE, 0, len(DATA))}
    parts = [Part(each.number, each.file, wrong.get(each.number, each.job)) for each in job.parts]
    async with running_pool() as pool:
        assert await run(pool, web, GroupJob(tuple(parts)), fds) == [0, 2, 3, 5]


async def test_after_a_fetcher_has_died_only_the_rest_is_fetched(web: Web, new_file: NewFile) -> None:
    """kill -9 when most parts are reported: each was reported once."""
    job, fds = parts_of(web, 40), [new_file(len(DATA)), new_file(len(DATA))]
    found: list[int] = []
    web.faults.add(Fault("hang", match="two", times=1))
    async with running_pool() as pool, trio.open_nursery() as nursery:

        def written(parts: list[Told]) -> None:
            found.extend(number for number, _ in parts)
            if len(found) >= 30 and not pool.statistics().restarts:
                os.kill(only_child(pool), signal.SIGKILL)

        with trio.fail_after(60):
            await pool.run_group(web.url, web.options, job, fds, priority=AHEAD, on_parts=written)
        nursery.cancel_scope.cancel()
    assert sorted(found) == list(range(40))


async def test_after_cancelling_nothing_is_written(web: Web, new_file: NewFile) -> None:
    """A cancelled group returns at once, though its server is silent."""
    web.faults.add(Fault("hang", match="two"))
    job, fds = parts_of(web, 8), [new_file(len(DATA)), new_file(len(DATA))]
    async with running_pool() as pool:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run, pool, web, job, fds)
                await stalled(web, 8)
                nursery.cancel_scope.cancel()
        for fd in fds:
            os.ftruncate(fd, 0)
        web.faults.clear()
        # the same objects again, by the same process: the first group's thread has had every chance
        assert await run(pool, web, GroupJob(job.parts[:2]), fds) == [0, 1]
        assert [os.fstat(fd).st_size for fd in fds] == [SIZE, STEP + SIZE]
        assert pool.statistics().restarts == 0


async def test_frames_are_checked_and_their_edges_kept(web: Web, new_file: NewFile) -> None:
    """A frame whose bytes are wrong is not reported; of the others what the clip leaves out comes back."""
    raw = DATA[:60_000]
    stored = bytearray(compress_seekable(raw, np.arange(0, 60_001, 6000, dtype=np.int64), 1))
    table = SeekTable.parse(bytes(stored), len(stored))
    assert table is not None
    frames = [next(iter(table.frames_for(at, at + 1))) for at in range(0, 60_000, 6000)]
    stored[frames[1].zip_off + frames[1].zip_len // 2] ^= 1
    web.put("data/framed", bytes(stored))
    etag = open_remote(web.url, web.options).stat("framed").etag
    clips = [(4096, 8192), None, (12288, 16384)]
    parts = [Part(at, 0, FramesJob("framed", etag, (frames[at],), clips[at], 0, len(stored))) for at in range(3)]
    told: list[Told] = []
    fd = new_file(len(raw))
    async with running_pool() as pool:
        await pool.run_group(web.url, web.options, GroupJob(tuple(parts)), [fd], priority=AHEAD, on_parts=told.extend)
    edges = dict(told)
    assert sorted(edges) == [0, 2]
    assert [at for at, _ in edges[2]] == [12000, 16384]
    assert all(data == raw[at : at + len(data)] for at, data in edges[2])
    assert os.pread(fd, 6000 - 4096, 4096) == raw[4096:6000]
