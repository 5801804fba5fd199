"""kill -9 and what is found afterwards: right bytes, bounded room, nothing edited ever served."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from streaming.engine.residency import ResidencyWriter
from streaming.errors import EngineUnavailableError
from streaming.remote import RemoteOptions
from tests.mount.host import until
from tests.servers import Fault

from .conftest import KIB, MIB, Data, Engine, Reader, disk_bytes, write_dataset

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.servers import FaultProxy, StorageServer

    Start = Callable[..., Engine]


def wait_complete(reader: Reader, file: int) -> None:
    """Until the hash of the last byte was checked, which may be after that byte was served."""
    until(lambda: reader.client.state(reader.dataset, file)["level"] == "shard")


def cache_file(engine: Engine, file: int) -> Path:
    """Where the engine keeps a file."""
    return next(engine.cache.glob(f"*/files/{file}"))


def test_what_was_complete_is_not_fetched_again_after_kill_9(start: Start, tmp_path: Path) -> None:
    """The next engine goes on with the same table: complete shards are read without a request."""
    data = write_dataset(tmp_path / "data", 2, MIB, "zstd")
    engine = start(16 * MIB)
    reader = Reader(engine.client(), str(data.folder), data)
    reader.check(0, 0, MIB)
    wait_complete(reader, 0)
    reader.fd(1)
    engine.kill()
    with pytest.raises(EngineUnavailableError):
        reader.ask(1, 0, 4096)
    reader.close()
    again = start(16 * MIB)
    reader = Reader(again.client(), str(data.folder), data)
    before = again.status()["remote"]["bytes"]
    reader.check(0, 0, MIB)
    assert reader.asked == 0
    assert again.status()["remote"]["bytes"] == before
    reader.check(1, 0, MIB)
    reader.close()


def test_a_fill_that_was_killed_leaves_neither_bytes_nor_room(
    start: Start, rclone: StorageServer, proxy: FaultProxy, tmp_path: Path
) -> None:
    """Killed in mid-fill: the next engine drops what was half written, charges right, and reads right."""
    data = write_dataset(tmp_path / "data", 2, 4 * MIB)
    rclone.put_tree("killed", data.folder)
    engine = start(16 * MIB, env=rclone.variables_for(proxy.endpoint))
    options = RemoteOptions(endpoint_url=proxy.endpoint)
    reader = Reader(engine.client(), rclone.url("killed"), data, options=options)
    proxy.add(Fault("stall", match="shard.00000", after=600_000))
    reader.check(0, 0, 4 * KIB, handle=1)
    with ThreadPoolExecutor(1) as waiting:
        read = waiting.submit(reader.ask, 0, 2 * MIB, MIB)
        until(lambda: any(request.sent >= 600_000 for request in proxy.seen("shard.00000")))
        engine.kill()
        with pytest.raises(EngineUnavailableError):
            read.result(60)
    proxy.clear()
    reader.close()
    again = start(16 * MIB, env=rclone.variables_for(proxy.endpoint))
    status = again.status()["cache"]
    assert status["disk_bytes"] <= status["charged_bytes"]
    reader = Reader(again.client(), rclone.url("killed"), data, options=options)
    for offset in range(0, 4 * MIB, 256 * KIB):
        reader.check(0, offset, 256 * KIB)
    reader.close()


@pytest.mark.parametrize("read", ["whole", "half"])
def test_an_eviction_that_was_killed_is_ended(start: Start, tmp_path: Path, read: str) -> None:
    """Killed after blocks lost their bits, before they lost their bytes: those of a whole file are back, others go."""
    data = write_dataset(tmp_path / "data", 1, 4 * MIB, "seekable")
    engine = start(16 * MIB)
    reader = Reader(engine.client(), str(data.folder), data)
    reader.check(0, 0, 4 * MIB if read == "whole" else 2 * MIB)
    reader.close()
    engine.settled()
    engine.kill()
    (path,) = engine.cache.glob("*/residency")
    table = ResidencyWriter.open(path, [4 * MIB])
    table.begin(0)
    table.clear_blocks(0, 0, 256)
    again = start(16 * MIB)
    status = again.status()
    assert status["cache"]["disk_bytes"] <= status["cache"]["charged_bytes"]
    assert table.count(0, 0, 256) == (256 if read == "whole" else 0)
    assert table.count(0, 256, 256) == 256
    assert table.generation(0) % 2 == 0
    table.close()


@pytest.mark.parametrize("edit", ["truncate", "overwrite", "replace", "grow", "delete"])
def test_files_changed_behind_the_engine_are_never_served(start: Start, tmp_path: Path, edit: str) -> None:
    """A truncated, edited, replaced, grown or deleted cache file is noticed before its first use."""
    data = write_dataset(tmp_path / "data", 1, MIB, "zstd")
    engine = start(16 * MIB)
    reader = Reader(engine.client(), str(data.folder), data)
    reader.check(0, 0, MIB)
    wait_complete(reader, 0)
    reader.close()
    engine.kill()
    path = cache_file(engine, 0)
    if edit == "truncate":
        os.truncate(path, MIB // 2)
    elif edit == "overwrite":
        with path.open("r+b") as file:
            file.seek(1000)
            file.write(b"edited")
    elif edit == "replace":
        path.unlink()
        path.write_bytes(b"x" * MIB)
    elif edit == "grow":
        with path.open("ab") as file:
            file.write(b"more")
    else:
        path.unlink()
    again = start(16 * MIB)
    reader = Reader(again.client(), str(data.folder), data)
    reader.check(0, 0, MIB)
    reader.check(0, 900, 200)
    reader.close()
    status = again.settled()
    assert disk_bytes(again.cache) <= status["cache"]["charged_bytes"]


@pytest.mark.parametrize("edit", ["replace", "delete"])
def test_a_file_that_vanishes_under_a_running_engine_is_fetched_again(start: Start, tmp_path: Path, edit: str) -> None:
    """Who opens a cache file that somebody has deleted or replaced gets the right bytes, not zeros."""
    data = write_dataset(tmp_path / "data", 1, MIB, "zstd")
    engine = start(16 * MIB)
    first = Reader(engine.client(), str(data.folder), data)
    first.check(0, 0, MIB)
    wait_complete(first, 0)
    path = cache_file(engine, 0)
    path.unlink()
    if edit == "replace":
        path.write_bytes(b"x" * MIB)
    second = Reader(engine.client(), str(data.folder), data)
    second.check(0, 0, MIB)
    first.check(0, 0, MIB)
    first.close()
    second.close()


def test_a_fetcher_that_is_killed_costs_nobody_a_byte(
    start: Start, rclone: StorageServer, proxy: FaultProxy, tmp_path: Path
) -> None:
    """kill -9 of the fetcher in mid-fill: the read ends right, by another fetcher."""
    data = write_dataset(tmp_path / "data", 1, 4 * MIB)
    rclone.put_tree("fetcher", data.folder)
    engine = start(16 * MIB, env=rclone.variables_for(proxy.endpoint))
    options = RemoteOptions(endpoint_url=proxy.endpoint)
    reader = Reader(engine.client(), rclone.url("fetcher"), data, options=options)
    proxy.add(Fault("stall", match="shard", after=100_000, times=1))
    children = f"/proc/{engine.process.pid}/task/{engine.process.pid}/children"

    import threading

    def kill_when_stalled() -> None:
        until(lambda: any(request.sent >= 100_000 for request in proxy.seen("shard")))
        with open(children) as file:
            fetchers = [int(pid) for pid in file.read().split()]
        os.kill(fetchers[0], signal.SIGKILL)
        proxy.clear()

    killer = threading.Thread(target=kill_when_stalled)
    killer.start()
    reader.check(0, 0, 4 * MIB)
    killer.join()
    assert engine.status()["remote"]["fetcher_restarts"] == 1
    reader.close()


def publish(engine: Engine, data: Data, folder: Path) -> None:
    """Fetch a dataset whose shards get their names in a folder, and wait until they stand there for good."""
    with engine.client() as client:
        source = client.open(str(data.folder), RemoteOptions().identity(""), publish=str(folder))
        number = source.datasets[0].dataset
        for file, raw in enumerate(data.raw):
            with client.held(number, [(file, 0, len(raw))]):
                pass
    names = {f"shard.{file:05d}.mds" for file in range(len(data.raw))}
    engine.settled()
    assert names <= set(os.listdir(folder))


def test_published_datasets_count_before_anybody_opens_them(start: Start, tmp_path: Path) -> None:
    """The next engine charges for what stands at its names too, in the cache and elsewhere, and makes room in it."""
    one = write_dataset(tmp_path / "one", 2, 2 * MIB, "zstd", seed=1)
    two = write_dataset(tmp_path / "two", 2, 2 * MIB, "zstd", seed=2)
    engine = start(16 * MIB)
    publish(engine, one, engine.cache / "one")
    publish(engine, two, tmp_path / "elsewhere" / "two")
    engine.kill()
    with start(16 * MIB) as again:
        status = again.status()["cache"]
        assert 8 * MIB < status["disk_bytes"] <= status["charged_bytes"]
    again = start(7 * MIB)
    assert disk_bytes(again.cache) + disk_bytes(tmp_path / "elsewhere") <= 7 * MIB


def test_a_smaller_limit_is_reached_before_anybody_is_served(start: Start, tmp_path: Path) -> None:
    """An engine started with less than what lies there evicts down to it first."""
    data = write_dataset(tmp_path / "data", 4, 2 * MIB, "zstd")
    engine = start(16 * MIB)
    reader = Reader(engine.client(), str(data.folder), data)
    for file in range(4):
        reader.check(file, 0, 2 * MIB)
    reader.close()
    engine.stop()
    again = start(5 * MIB)
    status = again.status()
    assert status["cache"]["disk_bytes"] <= status["cache"]["charged_bytes"] <= 5 * MIB
    reader = Reader(again.client(), str(data.folder), data)
    for file in range(4):
        reader.check(file, 0, 2 * MIB)
    reader.close()


def test_a_dataset_that_nobody_uses_makes_room_to_its_last_byte(start: Start, tmp_path: Path) -> None:
    """Files of an idle dataset go first, its folder afterwards."""
    old = write_dataset(tmp_path / "old", 2, 2 * MIB, "zstd", seed=1)
    new = write_dataset(tmp_path / "new", 3, 2 * MIB, "zstd", seed=2)
    limit = 1570 * 4096  # three shards and one folder; not two folders
    engine = start(limit)
    reader = Reader(engine.client(), str(old.folder), old)
    for file in range(2):
        reader.check(file, 0, 2 * MIB)
    reader.close()
    reader = Reader(engine.client(), str(new.folder), new)
    for file in range(3):
        reader.check(file, 0, 2 * MIB)
    status = engine.quiet()
    assert [each["url"] for each in status["datasets"]] == [str(new.folder)]
    assert disk_bytes(engine.cache) <= status["cache"]["charged_bytes"] <= limit
    reader.close()
