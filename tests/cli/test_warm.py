"""`mdsfs warm`: what is to be read is in the cache before, and what is pinned stays there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.mount.harness import why_not_mountable
from tests.mount.host import Host, until, write_dataset
from tests.servers import Fault, FaultProxy

from .caches import LIMIT, MIB, Data, Engine, Reader, Run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.servers import StorageServer


def opened(engine: Engine, data: Data) -> Reader:
    """A reader that has read nothing yet."""
    return Reader(engine.client(), str(data.folder), data)


def test_everything(run: Run, engine: Engine, data: Data) -> None:
    """Without patterns all files are loaded; what was loaded is not fetched again."""
    reader = opened(engine, data)
    assert run.ok("warm", "--cache-dir", engine.cache) == "6 files loaded, 6.00 MiB\n"
    until(lambda: not engine.status()["fills"]["running"])
    fetched = engine.status()["remote"]["bytes"]
    assert run.json("warm", "--cache-dir", engine.cache) == {"files": 6, "bytes": 6 * MIB}
    for file in range(6):
        reader.check(file, 0, MIB)
    assert reader.asked == 0
    assert engine.status()["remote"]["bytes"] == fetched
    reader.close()


def test_without_anybody_reading(run: Run, engine: Engine, data: Data) -> None:
    """A dataset that nobody has open can be loaded, as what it is in the cache."""
    opened(engine, data).close()
    engine.settled()
    assert run.ok("warm", "--cache-dir", engine.cache, "*/shard.0000[12].mds") == "2 files loaded, 2.00 MiB\n"
    engine.settled()
    (found,) = run.json("cache", "list", "--cache-dir", engine.cache, "-l")["datasets"]
    assert [each["name"] for each in found["rows"]] == ["shard.00001.mds", "shard.00002.mds"]


def test_pins(run: Run, engine: Engine, data: Data) -> None:
    """Pinned files are loaded and shown as pinned, until they are unpinned; the engine may be killed meanwhile."""
    reader = opened(engine, data)
    out = run.ok("warm", "--cache-dir", engine.cache, "shard.0000[0-2].mds", "--pin")
    assert out.startswith("3 files loaded, 3.00 MiB, pins take 3.")
    assert run.ok("cache", "list", "--cache-dir", engine.cache, "-l").count("pinned") == 3
    reader.close()
    engine.settled()
    engine.kill()
    with Engine(engine.cache, LIMIT):
        assert run.json("cache", "list", "--cache-dir", engine.cache)["datasets"][0]["pinned"] == 3
        assert run.ok("warm", "--cache-dir", engine.cache, "--unpin", "*0.mds", "*5.mds") == "1 files unpinned\n"
        assert run.json("warm", "--cache-dir", engine.cache, "--unpin") == {"unpinned": 2}


def test_what_does_not_fit_is_refused(run: Run, data: Data, tmp_path: Path) -> None:
    """More than the cache may hold: 7 with the figures, nothing is loaded and nothing pinned."""
    with Engine(tmp_path / "small", 5 * MIB) as engine:
        reader = opened(engine, data)
        code, err = run.failing("warm", "--cache-dir", engine.cache)
        assert (code, "6 files of 6.00 MiB for a cache limit of 5.00 MiB: choose fewer" in err) == (7, True)
        code, err = run.failing("warm", "--cache-dir", engine.cache, "--pin", "shard.0000[0-2].mds")
        assert (code, "for pins: pin fewer, unpin others" in err) == (7, True)
        (found,) = run.json("cache", "list", "--cache-dir", engine.cache)["datasets"]
        assert (found["pinned"], found["resident"]) == (0, 0)
        reader.close()


def test_no_engine(run: Run, tmp_path: Path) -> None:
    """Loading needs one: 11, and how to start it."""
    code, err = run.failing("warm", "--cache-dir", tmp_path)
    assert (code, "mdsfs engine" in err) == (11, True)
    assert run.failing("warm", "--cache-dir", tmp_path, "--pin", "--unpin")[0] == 2


@pytest.mark.mounted
@pytest.mark.skipif(why_not_mountable() is not None, reason=str(why_not_mountable()))
def test_a_mount(run: Run, rclone: StorageServer, tmp_path: Path) -> None:
    """Patterns are paths as the mount shows them; afterwards reading needs no store. All the commands name it so."""
    raw = write_dataset(tmp_path / "source" / "train", samples=40, compression="zstd", frame=4096)
    write_dataset(tmp_path / "source" / "val", samples=20)
    rclone.put_tree("warm", tmp_path / "source")
    with FaultProxy(rclone.endpoint) as proxy, Host(tmp_path, rclone.variables_for(proxy.endpoint)) as host:
        mount = host.mounted(rclone.url("warm"))
        assert run.ok("warm", mount, "train/*.mds", f"{mount}/val/shard.00000.mds", "--pin").startswith(
            "4 files loaded"
        )
        proxy.add(Fault("status"))
        for name, data in raw.items():
            assert (mount / "train" / name).read_bytes() == data
        proxy.clear()
        found = {each["name"]: each for each in run.json("ls", mount)["datasets"]}
        assert (found["train"]["complete"], found["val"]["complete"]) == (3, 1)
        assert run.ok("verify", mount).startswith("4 complete files")
        code, out, _ = run("cache", "evict", mount, "train/*")
        assert (code, out.splitlines()[0]) == (7, "kept  train/shard.00000.mds: pinned")
        assert run.ok("warm", mount, "--unpin") == "4 files unpinned\n"
        assert run.ok("cache", "clear", mount).startswith("4 files evicted")
        assert (mount / "train" / "shard.00000.mds").read_bytes() == raw["shard.00000.mds"]
