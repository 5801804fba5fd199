"""Views of shards in an engine's cache: right for as long as they exist, and no longer in the way than that."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from streaming.cached import Door, EngineFolder
from streaming.reader import Shards
from tests.mount.host import wait_for

from .test_cached import MIB, ROOT, content, door, right, used

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["door"]

# The dataset is half as large again; a reader's share is set to one shard.
LIMIT = 4 * MIB
SAMPLES = 300
PER_SHARD = 49


def reading(opened: Door) -> EngineFolder:
    """A reader that may pin one shard by itself."""
    folder = EngineFolder(opened)
    folder.pinnable = MIB
    return folder


def pinned(read: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
    """A sample of the first shard, read often enough for the shard to be pinned."""
    for _ in range(3):
        for number in range(PER_SHARD):
            sample = read(number)
    return sample


def is_here(folder: EngineFolder) -> bool:
    """Whether all of the first shard is in the cache."""
    return folder._session.residency.is_resident(0, 0, int(folder.tables.files["size"][0]))


def press(folder: EngineFolder) -> None:
    """Have the cache want the room of everything that nobody holds."""
    read = Shards(folder).reader()
    assert all(right(read(number), number) for number in range(PER_SHARD, SAMPLES, 2))


def leaves(folder: EngineFolder) -> bool:
    """Whether the first shard goes when others are read, within reason."""
    for _ in range(20):
        press(folder)
        if not is_here(folder):
            return True
    return False


def test_a_view_holds_its_shard(door: Callable[..., Door], tmp_path: Path) -> None:
    """What a view shows stays, whatever else is read; within the limit; when it goes, the shard may."""
    opened = door(LIMIT, samples=SAMPLES)
    folder, others = reading(opened), EngineFolder(opened)
    shards = Shards(folder, views=True)
    view = pinned(shards.reader())["x"]
    assert isinstance(view, memoryview)
    assert shards._pins
    shards.close(0)
    press(others)
    assert is_here(others)
    assert used(tmp_path / "cache") <= LIMIT
    assert bytes(view) == content(PER_SHARD - 1)
    view.release()
    assert leaves(others)


def test_a_reader_pins_no_more_than_its_share(door: Callable[..., Door]) -> None:
    """Of the shards that views were asked of, the last ones are held: the others may go."""
    folder = reading(door(LIMIT, samples=SAMPLES))
    shards = Shards(folder, views=True)
    read = shards.reader()
    for first in range(0, 3 * PER_SHARD, PER_SHARD):
        for _ in range(3):
            assert all(right(read(number), number) for number in range(first, first + PER_SHARD))
    assert 0 < sum(shards._pins.values()) <= MIB
    assert leaves(EngineFolder(folder.door))
    assert right(read(3), 3)


def test_a_shard_that_is_not_here_as_a_whole_is_copied(door: Callable[..., Door]) -> None:
    """Views of a shard of which only a part is in the cache are views of copies: right, and nothing is pinned."""
    shards = Shards(reading(door(LIMIT, samples=SAMPLES)), views=True)
    read = shards.reader()
    assert all(right(read(number), number) for number in (5, 5, 5, 5, 5, 5, 200, 200, 200, 200, 200, 200))
    samples = [read(number) for number in range(SAMPLES)]
    assert all(right(sample, number) for number, sample in enumerate(samples))


@contextlib.contextmanager
def child(of: Callable[[], bool]) -> Iterator[None]:
    """A forked child that does something, and lives while the block runs; it ends well if that was true."""
    told, tell = os.pipe()
    waits, end = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(end)
            done = of()
            os.write(tell, b"1")
            os.read(waits, 1)
            os._exit(not done)
        finally:
            os._exit(2)
    os.close(tell)  # so that reading ends with the child as well
    try:
        os.read(told, 1)
        yield
    finally:
        for fd in (told, waits, end):
            os.close(fd)
        assert os.waitpid(pid, 0)[1] == 0


def test_a_forked_child_holds_nothing_of_its_parents(door: Callable[..., Door]) -> None:
    """What the parent lets go of may leave while the child lives; the child reads by itself."""
    opened = door(LIMIT, samples=SAMPLES)
    others = EngineFolder(opened)
    shards = Shards(reading(opened), views=True)
    read = shards.reader()
    pinned(read)
    with child(lambda: not shards._pins and right(read(3), 3)):
        assert shards._pins
        press(others)
        assert is_here(others)
        shards.close(0)
        assert leaves(others)


def test_a_view_in_a_forked_child_stays_right(door: Callable[..., Door]) -> None:
    """The child's copy of a view holds the shard: it shows there what it shows here, whatever is read meanwhile."""
    opened = door(LIMIT, samples=SAMPLES)
    others = EngineFolder(opened)
    shards = Shards(reading(opened), views=True)
    view = pinned(shards.reader())["x"]
    waits, end = os.pipe()

    def looks() -> bool:
        os.close(end)
        os.read(waits, 1)
        return bytes(view) == content(PER_SHARD - 1)

    pid = os.fork()
    if not pid:
        try:
            os._exit(not looks())
        finally:
            os._exit(2)
    shards.close(0)
    view.release()
    press(others)
    assert is_here(others)
    os.close(end)
    os.close(waits)
    assert os.waitpid(pid, 0)[1] == 0
    assert leaves(others)


HOLDER = """
import sys
sys.path.insert(0, {root!r})
from tests.reader.test_pins import Door, Shards, pinned, reading
from tests.reader.test_cached import EngineClient, RemoteOptions
url, cache = sys.argv[1:]
identity = RemoteOptions.from_environment().identity(url)
shards = Shards(reading(Door(lambda: EngineClient.connect(cache), url, identity)), views=True)
view = pinned(shards.reader())["x"]
print(len(shards._pins), flush=True)
sys.stdin.read()
"""


def test_a_killed_holder_holds_nothing(door: Callable[..., Door], tmp_path: Path) -> None:
    """SIGKILL of a process with views: its shard stays until then, and may go afterwards."""
    opened = door(LIMIT, samples=SAMPLES)
    folder = EngineFolder(opened)
    command = [sys.executable, "-c", HOLDER.format(root=str(ROOT)), opened.url, str(tmp_path / "cache")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "1\n"
        press(folder)
        assert is_here(folder)
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    assert leaves(folder)


def test_views_outlive_the_engine(door: Callable[..., Door]) -> None:
    """kill -9 of the engine: a view shows what it showed, and what is read next comes from another engine."""
    opened = door(LIMIT, samples=SAMPLES)
    folder = reading(opened)
    read = Shards(folder, views=True).reader()
    view = pinned(read)["x"]
    ended = os.pidfd_open(folder.client.engine["pid"])
    os.kill(folder.client.engine["pid"], signal.SIGKILL)
    wait_for(ended)
    press(EngineFolder(opened))
    assert bytes(view) == content(PER_SHARD - 1)
    assert all(right(read(number), number) for number in range(0, SAMPLES, 7))


@pytest.mark.parametrize("limit", [LIMIT, 64 * MIB])
def test_batches_of_views(door: Callable[..., Door], limit: int) -> None:
    """`load_batch(views=True)`: varying columns as views, fixed ones as an array; held or copied, all are right."""
    from streaming.mixing import Mix

    mix = Mix.over([Shards(reading(door(limit, samples=SAMPLES)))], [("", "")])
    rng = np.random.default_rng(1)
    for _ in range(8):
        ids = rng.integers(0, SAMPLES, 64).tolist()
        batch = mix.load_batch(ids, views=True)
        assert batch["i"].tolist() == ids
        assert all(isinstance(value, memoryview) and value.readonly for value in batch["x"])
        assert [bytes(value) for value in batch["x"]] == [content(number) for number in ids]
        for value in batch["x"]:
            value.release()
