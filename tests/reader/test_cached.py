"""Reading straight from the cache of a real engine."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from streaming import MDSWriter
from streaming.cached import Door, EngineFolder
from streaming.engine.client import EngineClient
from streaming.engine.spawn import EngineOptions
from streaming.errors import EngineError
from streaming.reader import Shards
from streaming.remote import RemoteOptions
from tests.mount.host import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.servers import StorageServer

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20
SIZE = 20_000


def content(number: int) -> bytes:
    half = np.random.default_rng(number).bytes(SIZE // 2)
    return half + half


def write(folder: Path, samples: int = 600, **options: Any) -> Path:
    with MDSWriter(columns={"x": "bytes", "i": "int"}, out=str(folder), size_limit=1_000_000, **options) as writer:
        for number in range(samples):
            writer.write({"x": content(number), "i": number})
    return folder


def right(sample: dict[str, Any], number: int) -> bool:
    return bool(sample["i"] == number and bytes(sample["x"]) == content(number))


@pytest.fixture
def door(tmp_path: Path, rclone: StorageServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Door]]:
    """Opens doors to an engine over a dataset on rclone, which ends with the test."""
    for name, value in rclone.variables.items():
        monkeypatch.setenv(name, value)
    cache = tmp_path / "cache"

    def make(limit: int = 64 * MIB, **options: Any) -> Door:
        prefix = tmp_path.name
        rclone.put_tree(prefix, write(tmp_path / "source", **options))
        chosen = EngineOptions(cache, cache_limit=limit, idle_exit=60)
        url = rclone.url(prefix)
        return Door(lambda: EngineClient.connect(cache, chosen), url, RemoteOptions.from_environment().identity(url))

    yield make
    with contextlib.suppress(EngineError, OSError), EngineClient.connect(cache, client="cli") as client:
        ended = os.pidfd_open(client.engine["pid"])
        client.stop()
        wait_for(ended)


def statistics(door: Door) -> dict[str, Any]:
    import json

    with door.connect() as client:
        return dict(json.loads(client.status()))


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("limit", [64 * MIB, 4 * MIB])
@pytest.mark.parametrize("views", [False, True])
def test_every_sample_in_order_and_at_random(
    door: Callable[..., Door], compression: str | None, limit: int, views: bool
) -> None:
    """Right values with room for everything and for a third, whatever the order."""
    read = Shards(EngineFolder(door(limit, compression=compression)), views=views).reader()
    assert all(right(read(number), number) for number in range(600))
    order = random.Random(1).sample(range(600), 300)
    assert all(right(read(number), number) for number in order)


def test_views_stay_as_they_are(door: Callable[..., Door]) -> None:
    """What a zero-copy read gave is still right after the cache has dropped the shard."""
    read = Shards(EngineFolder(door(4 * MIB)), views=True).reader()
    first = read(3)
    for number in range(600):
        read(number)
    assert right(first, 3)


def test_a_sequential_reader_asks_seldom(door: Callable[..., Door]) -> None:
    """Reading in order, most of what is needed is there before it is asked for."""
    opened = door()
    read = Shards(EngineFolder(opened)).reader()
    for number in range(600):
        read(number)
    assert statistics(opened)["reads"]["misses"] < 60


def test_two_samples_in_a_row_make_no_sequential_reader(door: Callable[..., Door]) -> None:
    """Who reads at random fetches what it reads, also before the place where it once happened to read on."""
    folder = EngineFolder(door(4 * MIB))
    read = Shards(folder).reader()
    first = int(folder.tables.first_sample[5])
    for number in (40, 41, 28, 31, 34, 37):  # opening the shard has brought its first quarter
        read(first + number)
    assert [folder.words(5, number * SIZE + SIZE // 2, 1) for number in (30, 33, 36)] == [None] * 3


def test_the_engine_may_die(door: Callable[..., Door]) -> None:
    """kill -9 of the engine between two reads: the next ones start another and are right."""
    opened = door(4 * MIB)
    folder = EngineFolder(opened)
    read = Shards(folder).reader()
    assert right(read(5), 5)
    ended = os.pidfd_open(folder.client.engine["pid"])
    os.kill(folder.client.engine["pid"], signal.SIGKILL)
    wait_for(ended)
    assert all(right(read(number), number) for number in range(600))


def test_the_engine_may_die_before_a_shard_is_opened(door: Callable[..., Door]) -> None:
    """What notices it is the request for the next file: that is made again to another engine."""
    folder = EngineFolder(door())
    read = Shards(folder).reader()
    for first, number in ((5, 333), (100, 444)):
        assert right(read(first), first)
        ended = os.pidfd_open(folder.client.engine["pid"])
        os.kill(folder.client.engine["pid"], signal.SIGKILL)
        wait_for(ended)
        assert right(read(number), number)


def test_a_forked_child_reads_too(door: Callable[..., Door]) -> None:
    """A child that was forked after use reads right bytes over a connection of its own; so does its parent then."""
    read = Shards(EngineFolder(door(4 * MIB))).reader()
    assert right(read(0), 0)
    pid = os.fork()
    if not pid:
        try:
            os._exit(0 if all(right(read(number), number) for number in range(0, 600, 7)) else 1)
        finally:
            os._exit(2)
    assert all(right(read(number), number) for number in range(599, 0, -5))
    assert os.waitpid(pid, 0)[1] == 0


def test_threads(door: Callable[..., Door]) -> None:
    """Four threads read through one folder."""
    read = Shards(EngineFolder(door(4 * MIB))).reader()
    wrong: list[int] = []

    def some(seed: int) -> None:
        wrong.extend(
            number for number in random.Random(seed).sample(range(600), 150) if not right(read(number), number)
        )

    threads = [threading.Thread(target=some, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


READER = """
import os, random, sys
sys.path.insert(0, {root!r})
from tests.reader.test_cached import right, Door, EngineFolder, Shards, EngineClient, EngineOptions, RemoteOptions
from pathlib import Path
url, cache, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
door = Door(lambda: EngineClient.connect(cache), url, RemoteOptions.from_environment().identity(url))
read = Shards(EngineFolder(door)).reader()
rng = random.Random(seed)
print("reading", flush=True)
for turn in range(500):
    number = rng.randrange(600)
    assert right(read(number), number), number
    if seed == 3 and turn == 100:
        pid = os.fork()
        if not pid:
            assert right(read(7), 7)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
print("done", flush=True)
"""


def test_bound_with_four_readers(door: Callable[..., Door], tmp_path: Path) -> None:
    """Four processes, one of them stopped in mid-run, one forking: right bytes, and the disk never above the limit."""
    limit = 4 * MIB
    opened = door(limit)
    first = Shards(EngineFolder(opened)).reader()
    arguments = [opened.url, str(tmp_path / "cache")]
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", READER.format(root=str(ROOT)), *arguments, str(seed)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in range(4)
    ]
    highest = 0
    try:
        assert readers[0].stdout is not None
        assert readers[0].stdout.readline() == "reading\n"
        readers[0].send_signal(signal.SIGSTOP)
        running = readers[1:]
        while any(reader.poll() is None for reader in running):
            first(random.Random(highest).randrange(600))
            highest = max(highest, used(tmp_path / "cache"))
        readers[0].send_signal(signal.SIGCONT)
        assert [reader.wait(60) for reader in readers] == [0, 0, 0, 0]
        highest = max(highest, used(tmp_path / "cache"))
    finally:
        for reader in readers:
            reader.kill()
            reader.wait()
            assert reader.stdout is not None
            reader.stdout.close()
    assert 0 < highest <= limit


def used(folder: Path) -> int:
    """Bytes on disk of everything under a folder, at one moment: files looked at one after the other never were what
    they seem together, unless a second look finds the same. 0 where there was no such moment."""
    seen = _blocks(folder)
    for _ in range(20):
        before, seen = seen, _blocks(folder)
        if before == seen:
            return 512 * sum(seen.values())
    return 0


def _blocks(folder: Path) -> dict[str, int]:
    found = {}
    for base, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(base, name)
            with contextlib.suppress(FileNotFoundError):
                found[path] = os.lstat(path).st_blocks
    return found
