"""The bound, measured all the time while several processes read at random through a cache far too small."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest

from streaming.engine.client import EngineClient
from streaming.remote import RemoteOptions

from .conftest import MIB, Data, Engine, Reader, write_dataset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.servers import StorageServer

    Start = Callable[..., Engine]

READS = 100


def read_at_random(cache: Path, url: str, endpoint: str, data: Data, seed: int) -> None:
    """One reader process; its exit status tells whether every byte was right."""
    reader = Reader(EngineClient.connect(cache), url, data, options=RemoteOptions(endpoint_url=endpoint))
    rng = random.Random(seed)
    for number in range(READS):
        file = rng.randrange(len(data.raw))
        offset = rng.randrange(len(data.raw[file]) - 65536)
        reader.check(file, offset, rng.randrange(1, 65536), handle=file if seed % 2 else None)
        if number == READS // 2 and not seed and not os.fork():
            os._exit(0)
    reader.close()


@pytest.fixture
def own_filesystem(tmp_path: Path) -> Iterator[Path]:
    """A cache directory on a filesystem of its own: its use is one figure, where a walk over files is many instants."""
    path = tmp_path / "own"
    path.mkdir(mode=0o700)
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m,mode=700", "tmpfs", str(path)], capture_output=True)
    if made.returncode:
        pytest.skip(f"cannot mount a tmpfs: {made.stderr.decode().strip()}")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.mark.parametrize(("form", "limit"), [("raw", 4 * MIB), ("seekable", 4 * MIB), ("zstd", 10 * MIB)])
def test_the_limit_holds_at_every_instant(
    start: Start, rclone: StorageServer, tmp_path: Path, own_filesystem: Path, form: str, limit: int
) -> None:
    """Four processes, one stopped for a while, one forking; shards of 4 MiB; blocks on disk sampled continuously."""
    data = write_dataset(tmp_path / "data", 4, 4 * MIB, form)
    rclone.put_tree(f"bound-{form}", data.folder)
    engine = start(limit, env=rclone.variables, cache=own_filesystem.name)
    context = multiprocessing.get_context("fork")
    arguments = (engine.cache, rclone.url(f"bound-{form}"), rclone.endpoint, data)
    readers = [context.Process(target=read_at_random, args=(*arguments, seed)) for seed in range(4)]
    most, done = [0], threading.Event()

    def sample() -> None:
        while not done.is_set():
            found = os.statvfs(own_filesystem)
            most[0] = max(most[0], (found.f_blocks - found.f_bfree) * found.f_frsize)

    for reader in readers:
        reader.start()
    assert readers[1].pid
    os.kill(readers[1].pid, signal.SIGSTOP)
    sampler = threading.Thread(target=sample)
    sampler.start()
    for reader in (readers[0], readers[2], readers[3]):
        reader.join(600)
    os.kill(readers[1].pid, signal.SIGCONT)
    readers[1].join(600)
    done.set()
    sampler.join()
    assert [reader.exitcode for reader in readers] == [0, 0, 0, 0]
    assert 0 < most[0] <= limit
    status = engine.settled()
    assert status["cache"]["held_chunks"] == 0
    assert status["evictions"]["count"] > 0


def test_an_engine_begins_on_a_full_disk(
    start: Start, rclone: StorageServer, tmp_path: Path, own_filesystem: Path
) -> None:
    """What was open before is opened again, what is cached is there, and what is not passes by."""
    data = write_dataset(tmp_path / "data", 2, MIB)
    rclone.put_tree("full", data.folder)
    engine = start(16 * MIB, env=rclone.variables, cache=f"{own_filesystem.name}/cache")
    options = RemoteOptions(endpoint_url=rclone.endpoint)
    reader = Reader(engine.client(), rclone.url("full"), data, options=options)
    reader.check(0, 0, MIB)
    engine.quiet()
    engine.kill()
    reader.close()
    with open(own_filesystem / "of-somebody-else", "wb") as file:
        found = os.statvfs(own_filesystem)
        os.posix_fallocate(file.fileno(), 0, found.f_bfree * found.f_frsize)
    again = start(16 * MIB, env=rclone.variables, cache=f"{own_filesystem.name}/cache")
    reader = Reader(again.client(), rclone.url("full"), data, options=options)
    reader.check(0, 0, MIB)
    assert reader.asked == 0
    reader.check(1, 0, MIB)
    assert reader.passed
    reader.close()
