"""`mdsfs cache`: what is there is shown, goes when asked, and stays where somebody needs it."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

import pytest

from tests.engine.conftest import disk_bytes

from .caches import MIB, Data, Engine, Reader, Run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def reader(engine: Engine, data: Data) -> Iterator[Reader]:
    """One that has read the first four shards."""
    with engine.client() as client:
        reader = Reader(client, str(data.folder), data)
        for file in range(4):
            reader.check(file, 0, MIB)
        yield reader
        if not client.closed:
            reader.close()


def test_a_list(run: Run, engine: Engine, reader: Reader) -> None:
    """A line a dataset; with -l, or a pattern, a line for every file of which something is there."""
    (found,) = run.json("cache", "list", "--cache-dir", engine.cache)["datasets"]
    assert (found["complete"], found["resident"], found["users"]) == (4, 4 * MIB, 1)
    assert "rows" not in found
    assert run.ok("cache", "list", "--cache-dir", engine.cache, "-l").count("complete") == 4
    (found,) = run.json("cache", "list", "--cache-dir", engine.cache, "shard.0000[3-5].mds")["datasets"]
    assert [each["name"] for each in found["rows"]] == ["shard.00003.mds"]


def test_files_go(run: Run, engine: Engine, reader: Reader) -> None:
    """What a pattern names goes at once, and a reader gets it again when it asks."""
    out = run.ok("cache", "evict", "--cache-dir", engine.cache, "*/shard.0000[0-2].mds")
    assert out == "3 files evicted, 3.00 MiB\n"
    states = [reader.client.state(reader.dataset, file)["state"] for file in range(4)]
    assert states == ["absent"] * 3 + ["complete"]
    reader.check(0, 0, MIB)


def test_what_somebody_needs_stays(run: Run, engine: Engine, reader: Reader) -> None:
    """Held, pinned, mapped: each is named with the reason, and the exit code is 7."""
    run.ok("warm", "--cache-dir", engine.cache, "shard.00000.mds", "--pin")
    with reader.client.held(reader.dataset, [(1, 0, 4096)]):
        fcntl.flock(reader.fd(2), fcntl.LOCK_SH)  # as a zero-copy view does
        code, out, err = run("cache", "clear", "--cache-dir", engine.cache)
    assert (code, err) == (7, "")
    *kept, summary = out.splitlines()
    assert [line.rpartition("/")[2] for line in kept] == [
        "shard.00000.mds: pinned",
        "shard.00001.mds: held by a reader",
        "shard.00002.mds: in use by a reader",
    ]
    assert summary == "1 files evicted, 1.00 MiB, 3 stay"
    for file in range(4):
        reader.check(file, 0, MIB)


def test_without_an_engine(run: Run, engine: Engine, reader: Reader, data: Data) -> None:
    """The same from the disk; the next engine finds what was left, and fetches what was not."""
    run.ok("warm", "--cache-dir", engine.cache, "shard.00000.mds", "--pin")
    reader.close()
    engine.settled()
    engine.stop()
    code, out, _ = run("cache", "evict", "--cache-dir", engine.cache, "shard.0000[01].mds")
    assert (code, out.splitlines()[1]) == (7, "1 files evicted, 1.00 MiB, 1 stay")
    (found,) = run.json("cache", "list", "--cache-dir", engine.cache, "-l")["datasets"]
    assert [each["name"][10] for each in found["rows"]] == ["0", "2", "3"]
    with Engine(engine.cache, engine.limit) as again, again.client() as client:
        assert client.engine["pid"] == again.process.pid
        fresh = Reader(client, str(data.folder), data)
        assert [client.state(fresh.dataset, file)["state"][0] for file in range(4)] == ["c", "a", "c", "c"]
        for file in range(4):
            fresh.check(file, 0, MIB)
        fresh.close()
    assert disk_bytes(engine.cache) <= engine.limit


@pytest.mark.parametrize("running", [True, False])
def test_clear_leaves_nothing(run: Run, engine: Engine, reader: Reader, running: bool) -> None:
    """Tables and folders go as well, once nobody has them open."""
    reader.close()
    engine.settled()
    if not running:
        engine.stop()
    assert run.json("cache", "clear", "--cache-dir", engine.cache) == {"files": 4, "bytes": 4 * MIB, "kept": []}
    assert run.ok("cache", "list", "--cache-dir", engine.cache) == "nothing is there\n"
    assert [each.name for each in engine.cache.iterdir() if each.is_dir()] == []


def test_refusals(run: Run, engine: Engine, reader: Reader, tmp_path: Path) -> None:
    """No pattern, one that fits nothing, no cache: one line each."""
    assert run.failing("cache", "evict", "--cache-dir", engine.cache)[0] == 2
    code, err = run.failing("cache", "evict", "--cache-dir", engine.cache, "shard.9*", "*0.mds")
    assert (code, "no file fits 'shard.9*'" in err) == (2, True)
    assert run.failing("cache", "list", "--cache-dir", tmp_path)[0] == 7
    assert run.failing("cache", "list", tmp_path)[0] == 8
    assert run.failing("cache")[0] == 2
    assert os.listdir(engine.cache)
