"""A failing store: right bytes or a clear error for those it concerns, and for nobody else."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from mdsfs.engine.store.state import file_state, map_records
from streaming.errors import (
    EngineUnavailableError,
    ObjectChangedError,
    ObjectMissingError,
    ShardCorruptError,
    StreamingError,
)
from streaming.remote import RemoteOptions
from tests.mount.host import until
from tests.servers import Fault

from .conftest import FRAME, KIB, MIB, Data, Engine, Reader, write_dataset

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.servers import FaultProxy, StorageServer

    Start = Callable[..., Engine]

SHARD = "shard.00000"


@pytest.fixture
def begin(
    start: Start, rclone: StorageServer, proxy: FaultProxy, tmp_path: Path, request: pytest.FixtureRequest
) -> Callable[..., tuple[Engine, Reader]]:
    """An engine and a reader of a fresh dataset behind the proxy."""

    def make(form: str = "raw", *options: str, size: int = 2 * MIB, shards: int = 2, limit: int = 32 * MIB):  # type: ignore[no-untyped-def]
        prefix = request.node.name.replace("[", "-").replace("]", "")
        data: Data = write_dataset(tmp_path / "data", shards, size, form)
        rclone.put_tree(prefix, data.folder)
        engine = start(limit, *options, env=rclone.variables_for(proxy.endpoint))
        remote = RemoteOptions(endpoint_url=proxy.endpoint)
        return engine, Reader(engine.client(), rclone.url(prefix), data, options=remote)

    return make


Begin = "Callable[..., tuple[Engine, Reader]]"


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", match=SHARD, times=2, status=503),
        Fault("status", match=SHARD, times=2, status=500, code="InternalError"),
        Fault("reset", match=SHARD, times=2, after=100_000),
        Fault("truncate", match=SHARD, times=2, after=100_000),
    ],
    ids=lambda fault: f"{fault.kind}{fault.status}",
)
@pytest.mark.parametrize("form", ["raw", "zstd"])
def test_passing_faults_are_not_noticed(begin: Begin, proxy: FaultProxy, form: str, fault: Fault) -> None:
    """Bursts of errors, resets and cut bodies are retried; the bytes are right."""
    engine, reader = begin(form)
    fault.hits = 0
    proxy.add(fault)
    reader.check(0, 0, 2 * MIB)
    assert engine.quiet()["remote"]["retries"] > 0
    reader.close()


@pytest.mark.parametrize("form", ["zstd", "seekable"])
@pytest.mark.parametrize("verify", ["transport", "shard"])
def test_wrong_bytes_are_fetched_once_more(begin: Begin, proxy: FaultProxy, form: str, verify: str) -> None:
    """One corrupted answer: noticed, withdrawn, fetched again, right."""
    engine, reader = begin(form, "--verify", verify)
    proxy.add(Fault("corrupt", match=SHARD, times=1, after=40_000))
    reader.check(0, 2 * MIB - 5000, 5000)
    reader.check(0, 0, 2 * MIB)
    assert engine.quiet()["fills"]["failed"] == 0
    reader.close()


def test_wrong_bytes_that_pass_by_the_cache_are_fetched_once_more(begin: Begin, proxy: FaultProxy) -> None:
    """Where there is no room for them the reader hears as little of it."""
    _, reader = begin("zstd", "--verify", "shard", limit=3 * MIB, size=4 * MIB)
    proxy.add(Fault("corrupt", match=SHARD, times=1, after=40_000))
    reader.check(0, 0, 4096)
    assert reader.passed == 1
    reader.close()


@pytest.mark.parametrize("form", ["raw", "zstd"])
def test_bytes_that_stay_wrong_are_never_served_at_shard_level(begin: Begin, proxy: FaultProxy, form: str) -> None:
    """After the second refusal the file answers with the error at once; the others are not concerned."""
    engine, reader = begin(form, "--verify", "shard")
    proxy.add(Fault("corrupt", match=SHARD, after=300_000))
    for _ in range(2):
        with pytest.raises(ShardCorruptError, match=SHARD):
            reader.ask(0, 0, 4096)
    requests = len(proxy.seen(SHARD))
    with pytest.raises(ShardCorruptError):
        reader.ask(0, MIB, 4096)
    assert len(proxy.seen(SHARD)) == requests
    assert reader.client.state(reader.dataset, 0)["state"] == "failed"
    reader.check(1, 0, 2 * MIB)
    status = engine.quiet()
    assert status["fills"]["failed"] == 1
    reader.close()


def test_a_fill_that_began_below_shard_level_is_not_served_above(begin: Begin, proxy: FaultProxy) -> None:
    """A client that wants hashes checked opens the dataset while a range of it is still on its way without."""
    engine, first = begin()
    proxy.add(Fault("hang", match=SHARD))
    with ThreadPoolExecutor(2) as threads:
        asked = threads.submit(first.ask, 0, 0, 4096)
        while engine.status()["reads"]["waiting"] < 1:
            assert not asked.done()
        opened = threads.submit(lambda: replace(first, client=engine.client(), validate="shard"))
        while not any(source["verify"] == "shard" for source in engine.status()["datasets"]):
            assert not opened.done() or opened.exception() is None
        proxy.clear()
        assert asked.result(60) == first.data.raw[0][:4096]
        second = opened.result(60)
    second.check(0, 0, 4096)
    assert second.client.state(second.dataset, 0)["level"] == "shard"
    first.close()
    second.close()


def test_a_deleted_object_is_missing_and_what_was_read_stays(
    begin: Begin, rclone: StorageServer, proxy: FaultProxy
) -> None:
    """Absent bytes answer that the object is missing, resident ones are served, and the next want tries again."""
    _, reader = begin()
    reader.check(0, 0, 64 * KIB)
    key = proxy.seen(SHARD)[0].key
    rclone.delete(key)
    with pytest.raises(ObjectMissingError, match=SHARD):
        reader.ask(0, MIB, 4096)
    reader.check(0, 0, 64 * KIB)
    reader.check(1, 0, 64 * KIB)
    reader.close()


def test_a_replaced_object_is_stale_not_mixed(begin: Begin, rclone: StorageServer, proxy: FaultProxy) -> None:
    """Bytes of another version are refused."""
    _, reader = begin()
    reader.check(0, 0, 64 * KIB)
    rclone.put(proxy.seen(SHARD)[0].key, b"z" * (2 * MIB))
    with pytest.raises(ObjectChangedError):
        reader.ask(0, MIB, 4096)
    reader.check(0, 0, 64 * KIB)
    reader.close()


def test_a_failure_reaches_those_it_concerns_and_the_next_want_tries_again(begin: Begin, proxy: FaultProxy) -> None:
    """A permanent refusal is an error for the range; when it is over, the same range is read."""
    engine, reader = begin()
    proxy.add(Fault("status", match=SHARD, status=403, code="AccessDenied"))
    with pytest.raises(StreamingError, match=SHARD):
        reader.ask(0, 0, 4096)
    reader.check(1, 0, 4096)
    proxy.clear()
    reader.check(0, 0, 4096)
    assert engine.quiet()["fills"]["failed"] == 1
    reader.close()


def test_readers_stuck_on_one_object_leave_the_others_alone(begin: Begin, proxy: FaultProxy) -> None:
    """Twenty wants wait for a silent object; a resident file answers at once and a cold one is fetched.

    When the store speaks again all of them have their bytes.
    """
    engine, reader = begin(shards=3)
    reader.check(1, 0, 64 * KIB)
    proxy.add(Fault("hang", match=SHARD))
    ended: list[bool] = []

    def wait(number: int) -> None:
        at = number * 64 * KIB
        ended.append(reader.ask(0, at, 4096, timeout=60) == reader.data.raw[0][at : at + 4096])

    threads = [threading.Thread(target=wait, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    while engine.status()["reads"]["waiting"] < 20:
        assert not ended
    assert reader.ask(1, 0, 4096) == reader.data.raw[1][:4096]
    reader.check(2, 0, 64 * KIB)
    assert not ended
    proxy.clear()
    for thread in threads:
        thread.join()
    assert ended == [True] * 20
    reader.close()


def test_no_room_and_a_failing_store_is_an_error_not_a_hang(begin: Begin, proxy: FaultProxy) -> None:
    """Bytes that pass by the cache fail like others."""
    engine, reader = begin("zstd", limit=3 * MIB, size=4 * MIB)
    reader.check(0, MIB, 4096)
    assert reader.passed == 1
    proxy.add(Fault("status", match=SHARD, status=403, code="AccessDenied"))
    with pytest.raises(StreamingError, match=SHARD):
        reader.ask(0, 0, 4096)
    proxy.clear()
    reader.check(0, 0, 4096)
    engine.quiet()
    reader.close()


def test_an_engine_ends_while_a_group_of_fills_hangs_in_a_file_that_had_wrong_bytes(
    begin: Begin, proxy: FaultProxy
) -> None:
    """What a file leaves waits until nobody holds it, and the fills of a group hold each other's: not at the end.

    What is left in the file then is the next engine's to find.
    """
    engine, reader = begin("seekable")
    reader.check(0, 0, 4 * KIB)
    proxy.add(Fault("corrupt", match=SHARD, times=1, after=1000))
    reader.check(0, 8 * FRAME, 4 * KIB)
    assert engine.quiet()["fills"]["refetched"] == 1
    proxy.reset_counters()
    proxy.add(Fault("hang", match=SHARD))
    ranges = [(0, at * FRAME, 4 * KIB) for at in range(17, 21)]  # neighbours: each holds a part of what the next does
    with ThreadPoolExecutor(1) as threads:
        wanted = threads.submit(reader.client.want, reader.dataset, ranges)
        until(lambda: len(proxy.seen(SHARD)) >= len(ranges))
        assert engine.stop() == 0
        with pytest.raises(EngineUnavailableError):
            wanted.result()
    reader.close()
    (table,) = engine.cache.glob("*/state")
    with table.open("rb") as file:
        assert [file_state(each).dirty for each in map_records(file.fileno(), 2)] == [True, False]


def test_a_folder_that_goes_while_it_is_opened_is_made_anew(
    start: Start, rclone: StorageServer, proxy: FaultProxy, tmp_path: Path
) -> None:
    """Idle and empty, it makes room for another reader between the index's answer and its own."""
    idle = write_dataset(tmp_path / "idle", 1, MIB, seed=1)
    busy = write_dataset(tmp_path / "busy", 4, 2 * MIB, seed=2)
    for name, data in (("going-idle", idle), ("going-busy", busy)):
        rclone.put_tree(name, data.folder)
    engine = start(5 * MIB, env=rclone.variables_for(proxy.endpoint))
    options = RemoteOptions(endpoint_url=proxy.endpoint)
    Reader(engine.client(), rclone.url("going-idle"), idle, options=options).close()
    reader = Reader(engine.client(), rclone.url("going-busy"), busy, options=options)
    proxy.add(Fault("hang", match="going-idle/index.json", method="HEAD"))
    with ThreadPoolExecutor(1) as threads:
        opening = threads.submit(Reader, engine.client(), rclone.url("going-idle"), idle, options=options)
        until(lambda: proxy.seen("going-idle/index.json", "HEAD"))
        for file in range(4):
            reader.check(file, 0, 2 * MIB)
        assert [each["url"] for each in engine.status()["datasets"]] == [rclone.url("going-busy")]
        proxy.clear()
        opened = opening.result()
    opened.check(0, 0, MIB)
    opened.close()
    reader.close()
