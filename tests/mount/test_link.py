"""The tie to the engine: reads, deadlines, eviction, engine deaths; over the real protocol, without a mount."""

from __future__ import annotations

import contextlib
import os
import random
from typing import TYPE_CHECKING

import pytest
import trio

from mdsfs.mount.link import Link, Place
from mdsfs.mount.session import SourceOptions
from streaming.engine.spawn import EngineOptions
from streaming.errors import EngineUnavailableError, ObjectChangedError, ReadTimeoutError, ShardCorruptError

from .fake_engine import CORRUPT, FakeEngine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.trio

MIB = 1 << 20
CONTENTS = {"a": random.Random(1).randbytes(2 * MIB + 100), "b": random.Random(2).randbytes(5000)}


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[FakeEngine]:
    with FakeEngine(tmp_path / "cache", CONTENTS) as engine:
        yield engine


@contextlib.asynccontextmanager
async def linked(engine: FakeEngine, *, read_timeout: float = 60.0, descriptors: int = 100) -> AsyncIterator[Link]:
    link = Link(
        EngineOptions(cache_dir=engine.cache_dir),
        SourceOptions("fake://source", {}),
        read_timeout=read_timeout,
        descriptors=descriptors,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(link.run)
        yield link
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], object]) -> None:
    """Let other tasks and threads go on until something holds; fails after a minute."""
    with trio.fail_after(60):
        while not condition():  # of threads, which have no event of trio's  # noqa: ASYNC110
            await trio.sleep(0.001)


def place(file: int = 0, offset: int = 0, size: int = 4096) -> Place:
    return Place(0, file, offset, size, handle=1)


def wanted(engine: FakeEngine) -> list[list[int]]:
    return [message["ranges"][0] for message in engine.wants]


async def test_resident_bytes_are_read_without_asking(engine: FakeEngine) -> None:
    """What the residency table has is copied from the cache file: no want reaches the engine."""
    engine.fill(0)
    async with linked(engine) as link:
        data = await link.read(place(0, 12345, 100_000))
        assert bytes(data) == CONTENTS["a"][12345:112345]
        into = memoryview(bytearray(777))
        assert link.read_nowait(place(0, 5, 777), into)
        assert bytes(into) == CONTENTS["a"][5:782]
    assert engine.wants == []


async def test_absent_bytes_are_wanted_and_let_go(engine: FakeEngine) -> None:
    """An absent range is asked for once, with its handle, and its hold is ended after copying."""
    async with linked(engine) as link:
        assert not link.read_nowait(place(0, 0, 10), memoryview(bytearray(10)))
        assert bytes(await link.read(place(0, 8192, 4096))) == CONTENTS["a"][8192:12288]
        await until(lambda: engine.done)
    assert wanted(engine) == [[0, 8192, 4096]]
    assert engine.wants[0]["handle"] == 1
    assert engine.done == [engine.wants[0]["id"]]


async def test_bytes_without_room_come_from_memory(engine: FakeEngine) -> None:
    """An engine without room answers the bytes themselves."""
    engine.direct = True
    async with linked(engine) as link:
        for offset, size in ((0, 4096), (4096, 100_000), (2 * MIB, 100)):
            assert bytes(await link.read(place(0, offset, size))) == CONTENTS["a"][offset : offset + size]


async def test_evicted_bytes_are_never_served(engine: FakeEngine) -> None:
    """After an eviction the bits are gone: the range is asked for again."""
    engine.fill(0)
    async with linked(engine) as link:
        await link.read(place())
        engine.evict(0)
        assert not link.read_nowait(place(), memoryview(bytearray(4096)))
        assert bytes(await link.read(place())) == CONTENTS["a"][:4096]
    assert wanted(engine) == [[0, 0, 4096]]


async def test_a_changing_file_is_not_trusted(engine: FakeEngine) -> None:
    """While the generation is odd no read believes the bits."""
    engine.fill(0)
    async with linked(engine, read_timeout=0.2) as link:
        await link.read(place())
        engine.residency.begin(0)
        assert not link.read_nowait(place(), memoryview(bytearray(4096)))
        with pytest.raises(ReadTimeoutError):
            await link.read(place())
        engine.residency.end(0)
        assert bytes(await link.read(place())) == CONTENTS["a"][:4096]


async def test_the_deadline_ends_a_read(engine: FakeEngine) -> None:
    """A read that the engine does not answer ends at its deadline, and what was wanted is let go when it comes."""
    engine.allowed.clear()
    async with linked(engine, read_timeout=0.2) as link:
        with trio.fail_after(60), pytest.raises(ReadTimeoutError):
            await link.read(place())
        engine.allowed.set()
        await until(lambda: engine.done)
        assert link.waiting == 0


async def test_the_engines_reason_is_the_error(engine: FakeEngine) -> None:
    """A failed want raises the engine's own error, and the next read may succeed."""
    async with linked(engine) as link:
        engine.failure = CORRUPT
        with pytest.raises(ShardCorruptError, match="made up"):
            await link.read(place())
        engine.failure = None
        assert bytes(await link.read(place())) == CONTENTS["a"][:4096]


async def test_a_read_survives_its_engine(engine: FakeEngine) -> None:
    """A read that waits when the engine dies is asked of the next engine and finishes."""
    engine.allowed.clear()
    async with linked(engine) as link, trio.open_nursery() as nursery:
        results = []

        async def read() -> None:
            results.append(bytes(await link.read(place(0, 4096, 4096))))

        nursery.start_soon(read)
        await until(engine.wanted.is_set)
        engine.disconnect()
        await until(lambda: link.sessions == 2)
        engine.allowed.set()
        await until(lambda: results)
        assert results == [CONTENTS["a"][4096:8192]]


async def test_resident_reads_after_a_reconnect(engine: FakeEngine) -> None:
    """The next session's tables and files are used, not those of the dead engine."""
    engine.fill(1)
    async with linked(engine) as link:
        await link.read(place(1, 0, 5000))
        engine.disconnect()
        await until(lambda: link.sessions == 2)
        assert bytes(await link.read(place(1, 0, 5000))) == CONTENTS["b"]


async def test_changed_data_is_never_mixed_in(tmp_path: Path) -> None:
    """When the next engine shows other tables, reads fail with ESTALE instead of mixing versions."""
    cache = tmp_path / "cache"
    with contextlib.ExitStack() as engines:  # both outlive the link, which would start a real one
        first = engines.enter_context(FakeEngine(cache, CONTENTS))
        async with linked(first) as link:
            await link.read(place(1, 0, 10))
            engines.enter_context(FakeEngine(cache, {"a": b"other", "b": bytes(5000)}))
            first.disconnect()
            await until(lambda: link.sessions == 2)
            with pytest.raises(ObjectChangedError):
                await link.read(place(1, 0, 10))


async def test_many_reads_of_one_file_open_it_once(engine: FakeEngine) -> None:
    """The descriptor of a file is asked for once, however many reads need it at the same time."""
    async with linked(engine) as link:
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(link.read, place(0, number * 4096, 4096))
        assert engine.requests.count("file") == 1


async def test_descriptors_stay_within_their_limit(tmp_path: Path) -> None:
    """With more files than descriptors the oldest are closed, and opened again when needed."""
    contents = {f"{number:03}": bytes([number]) * 100 for number in range(40)}
    with FakeEngine(tmp_path / "cache", contents) as engine:
        async with linked(engine, descriptors=4) as link:
            before = len(os.listdir("/proc/self/fd"))
            for number in [*range(40), *range(40)]:
                assert bytes(await link.read(place(number, 0, 100))) == contents[f"{number:03}"]
            # the engine, a thread here, closes its own after it has sent them
            await until(lambda: len(os.listdir("/proc/self/fd")) <= before + 4)
            assert engine.requests.count("file") > 40


async def test_what_is_read_without_asking_is_told(engine: FakeEngine) -> None:
    """Reads that the engine never saw ride along with the next want, as pieces of a MiB."""
    engine.fill(0)
    async with linked(engine) as link:
        await link.read(place(0, MIB + 5, 100))
        await link.read(place(1, 0, 100))
    assert engine.wants[0]["touch"] == [[0, MIB]]


async def test_ending_the_mount_fails_waiting_reads(engine: FakeEngine) -> None:
    """Reads that wait when the mount ends fail at once."""
    engine.allowed.clear()
    async with linked(engine) as link, trio.open_nursery() as nursery:
        failed = trio.Event()

        async def read() -> None:
            with pytest.raises(EngineUnavailableError):
                await link.read(place())
            failed.set()

        nursery.start_soon(read)
        await until(engine.wanted.is_set)
        link.give_up_reads()
        with trio.fail_after(60):
            await failed.wait()


async def test_no_engine_and_none_to_start_is_an_error(tmp_path: Path) -> None:
    """Without an engine, and a cache directory that can't be one, the first connection fails with the reason."""
    (tmp_path / "cache").write_text("a file")
    link = Link(EngineOptions(cache_dir=tmp_path / "cache"), SourceOptions("x", {}), read_timeout=1, descriptors=9)
    async with trio.open_nursery() as nursery:
        with pytest.raises(Exception, match="cache"):
            await nursery.start(link.run)
