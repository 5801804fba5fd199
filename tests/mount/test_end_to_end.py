"""The command, the engine and the mount together, on real sources: bytes, laziness, lifetimes, crashes."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mdsfs.mount.mountpoint import mount_at
from tests.servers import Fault, FaultProxy

from .harness import why_not_mountable
from .host import Host, until, wait_for, write_dataset

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import StorageServer

pytestmark = [
    pytest.mark.mounted,
    pytest.mark.skipif(why_not_mountable() is not None, reason=str(why_not_mountable())),
]

MIB = 1 << 20


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with Host(tmp_path) as host:
        yield host


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two datasets and other objects."""
    folder = tmp_path_factory.mktemp("datasets")
    write_dataset(folder / "train", compression="zstd")
    write_dataset(folder / "val", samples=20)
    (folder / "README.md").write_text("hello\n")
    (folder / "train" / "extra").mkdir()
    (folder / "train" / "extra" / "notes.txt").write_text("a note\n")
    return folder


@pytest.fixture
def proxied(moto: StorageServer) -> Iterator[FaultProxy]:
    with FaultProxy(moto.endpoint) as proxy:
        yield proxy


@pytest.fixture
def remote(tmp_path: Path, moto: StorageServer, proxied: FaultProxy) -> Iterator[Host]:
    """A host whose store is moto behind a proxy that counts."""
    with Host(tmp_path, moto.variables_for(proxied.endpoint)) as host:
        yield host


def pread(path: Path, size: int, offset: int) -> bytes:
    """By a descriptor of its own, without read-ahead."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        return os.pread(fd, size, offset)
    finally:
        os.close(fd)


def test_a_folder_of_datasets(host: Host, datasets: Path) -> None:
    """Splits, their shards decompressed, an index that agrees with them, and every other object as it is."""
    from .host import raw_shards

    mount = host.mounted(datasets)
    assert sorted(os.listdir(mount)) == [".mdsfs", "README.md", "train", "val"]
    for split in ("train", "val"):
        raw = raw_shards(datasets / split)
        assert {path.name for path in (mount / split).glob("*.mds*")} == set(raw)
        for name, data in raw.items():
            assert (mount / split / name).read_bytes() == data
        for shard in json.loads((mount / split / "index.json").read_bytes())["shards"]:
            assert shard["compression"] is shard["zip_data"] is None
            assert shard["raw_data"]["bytes"] == (mount / split / shard["raw_data"]["basename"]).stat().st_size
    assert (mount / "README.md").read_text() == "hello\n"
    assert (mount / "train/extra/notes.txt").read_text() == "a note\n"
    assert (mount / "val/index.json").read_bytes() == (datasets / "val/index.json").read_bytes()


def test_status_of_a_mount(host: Host, datasets: Path) -> None:
    """The document has what the command promises, as JSON, as a table, and in the mount itself."""
    mount = host.mounted(datasets / "train")
    (mount / "shard.00000.mds").read_bytes()
    document = host.status()
    promised = {
        "cache": {"limit_bytes", "resident_bytes", "reserved_bytes", "pinned_bytes", "disk_bytes"},
        "remote": {"requests", "bytes", "errors", "retries"},
        "reads": {"hits", "misses", "waiting"},
        "fills": {"running", "failed"},
        "evictions": {"count", "bytes"},
    }
    for section, keys in promised.items():
        assert keys <= document[section].keys()
        assert all(isinstance(document[section][key], int) for key in keys)
    assert document["cache"]["limit_bytes"] == 256 * MIB
    assert document["mounts"][0]["mountpoint"] == str(mount)
    assert document["mount"]["source"] == str(datasets / "train")
    assert "cache.limit" in host.run("status", mount).stdout
    by_cache = json.loads(host.run("status", "--cache-dir", host.cache, "--json").stdout)
    assert by_cache["mounts"] == document["mounts"]


def test_states_of_shards(host: Host, datasets: Path) -> None:
    """A shard says where it comes from, how much of it is there and how far it was verified."""
    mount = host.mounted(datasets / "train")
    shard = mount / "shard.00000.mds"
    assert os.getxattr(shard, "user.mdsfs.state") == b"absent"
    assert os.getxattr(shard, "user.mdsfs.source").endswith(b"train/shard.00000.mds.zstd")
    shard.read_bytes()
    until(lambda: os.getxattr(shard, "user.mdsfs.state") == b"complete")
    until(lambda: os.getxattr(shard, "user.mdsfs.verified") in (b"frame", b"shard"))
    assert json.loads(os.getxattr(mount, "user.mdsfs.engine"))["url"] == str(datasets / "train")


def test_lifetime_of_a_mount(host: Host, datasets: Path) -> None:
    """Mounting answers when it is there; a second mount is refused; umount leaves nothing but the cache."""
    done = host.mount(datasets / "val")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{datasets / 'val'} is mounted at {host.mountpoint}\n"
    again = host.mount(datasets / "val")
    assert (again.returncode, again.stdout) == (8, "")
    assert "already mounted" in again.stderr
    assert again.stderr.count("\n") == 1
    daemon = os.pidfd_open(host.status()["mount"]["pid"])
    assert host.run("umount", host.mountpoint).returncode == 0
    wait_for(daemon)
    assert mount_at(str(host.mountpoint)) is None
    assert list(host.mountpoint.iterdir()) == []


def test_umount_says_who_uses_it(host: Host, datasets: Path) -> None:
    """A mount in use is 10 and names the process; with --wait it goes when that process has."""
    mount = host.mounted(datasets / "val")
    user = subprocess.Popen(["sh", "-c", "echo there; read line"], cwd=mount, stdin=-1, stdout=-1, text=True)
    assert user.stdout is not None
    assert user.stdin is not None
    user.stdout.readline()
    done = host.run("umount", mount)
    assert done.returncode == 10
    assert f"{user.pid} (sh -c" in done.stderr
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(host.run, "umount", mount, "--wait", "30")
        user.communicate("go\n")
        assert waiting.result().returncode == 0


def test_a_lazy_umount_lets_who_is_there_read_on(host: Host, datasets: Path) -> None:
    """With --lazy the mountpoint is free at once; an open file reads on, and the mount ends when that is closed."""
    mount = host.mounted(datasets / "train")
    daemon = os.pidfd_open(host.status()["mount"]["pid"])
    shown = write_dataset(host.cache.with_name("same"), compression="zstd")["shard.00000.mds"]
    with (mount / "shard.00000.mds").open("rb") as file:
        assert host.run("umount", mount).returncode == 10
        done = host.run("umount", mount, "--lazy")
        assert (done.returncode, done.stderr) == (0, "")
        assert mount_at(str(mount)) is None
        assert file.read() == shown
    wait_for(daemon)


def test_foreground_and_signals(host: Host, datasets: Path) -> None:
    """With -f the command stays, says that it is mounted, and ends with 0 at SIGTERM."""
    argv = ["mount", datasets / "val", host.mountpoint, "-f", "--cache-dir", host.cache, "--cache-limit=64mb"]
    process = subprocess.Popen(host._command(*argv), env=host.environment, stdout=-1, stderr=-1, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().endswith(f"is mounted at {host.mountpoint}\n")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert mount_at(str(host.mountpoint)) is None


def test_laziness(remote: Host, proxied: FaultProxy, moto: StorageServer, tmp_path: Path) -> None:
    """Listing, stat and the index fetch no byte of a shard; 4 KiB in the middle of a large shard fetch under 2 MiB."""
    for name, options in (("raw", {}), ("seekable", {"compression": "zstd"})):
        raw = write_dataset(tmp_path / name, 600, 110_000, size_limit=66 * MIB, hashes=None, **options)
        moto.put_tree(name, tmp_path / name)
        assert len(raw["shard.00000.mds"]) > 60 * MIB
        mount = remote.mounted(moto.url(name))
        assert {path.name for path in mount.rglob("*")} >= set(raw)
        assert (mount / "shard.00000.mds").stat().st_size == len(raw["shard.00000.mds"])
        assert json.loads((mount / "index.json").read_bytes())["version"] == 2
        assert proxied.bytes_sent(f"{name}/shard") == 0
        assert pread(mount / "shard.00000.mds", 4096, 32 * MIB) == raw["shard.00000.mds"][32 * MIB :][:4096]
        assert 0 < proxied.bytes_sent(f"{name}/shard") < 2 * MIB
        assert remote.run("umount", mount).returncode == 0


def test_many_readers_fetch_once(remote: Host, proxied: FaultProxy, moto: StorageServer, tmp_path: Path) -> None:
    """Eight readers of one cold dataset make the server send each object once."""
    raw = write_dataset(tmp_path / "once", 100, 60_000, compression="zstd", size_limit=MIB)
    moto.put_tree("once", tmp_path / "once")
    mount = remote.mounted(moto.url("once"))

    def read_all(seed: int) -> bool:
        names = random.Random(seed).sample(sorted(raw), len(raw))
        return all((mount / name).read_bytes() == raw[name] for name in names)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read_all, range(8)))
    for path in (tmp_path / "once").glob("shard*"):
        # the tail, where a seek table would be, may have been asked for beside the data
        assert path.stat().st_size <= proxied.bytes_sent(f"once/{path.name}") <= path.stat().st_size + 128 * 1024


def test_a_killed_engine(remote: Host, moto: StorageServer, proxied: FaultProxy, tmp_path: Path) -> None:
    """Reads that wait when the engine is killed finish right with the next one, which refetches nothing complete."""
    raw = write_dataset(tmp_path / "killed", 100, 60_000, size_limit=MIB)
    moto.put_tree("killed", tmp_path / "killed")
    mount = remote.mounted(moto.url("killed"))
    names = sorted(raw)
    assert (mount / names[0]).read_bytes() == raw[names[0]]
    # bytes can be read before their fill has ended, and only then has it said on disk that they are good
    until(lambda: remote.status()["fills"]["running"] == 0)
    assert os.getxattr(mount / names[0], "user.mdsfs.state") == b"complete"
    hang = proxied.add(Fault("hang", "shard"))
    with ThreadPoolExecutor(4) as pool:
        reads = {name: pool.submit((mount / name).read_bytes) for name in names[1:]}
        until(lambda: remote.status()["reads"]["waiting"] > 0)
        remote.kill(remote.status()["engine"]["pid"])
        proxied.remove(hang)
        for name, read in reads.items():
            assert read.result(60) == raw[name]
    sent = proxied.bytes_sent(f"killed/{names[0]}")
    drop_pages(mount / names[0])
    assert (mount / names[0]).read_bytes() == raw[names[0]]
    assert proxied.bytes_sent(f"killed/{names[0]}") == sent


def test_a_killed_fetcher(remote: Host, moto: StorageServer, proxied: FaultProxy, tmp_path: Path) -> None:
    """Reads that wait when a fetcher is killed finish right."""
    raw = write_dataset(tmp_path / "fetcher", 100, 60_000, size_limit=MIB)
    moto.put_tree("fetcher", tmp_path / "fetcher")
    mount = remote.mounted(moto.url("fetcher"))
    hang = proxied.add(Fault("hang", "shard"))
    with ThreadPoolExecutor(4) as pool:
        reads = {name: pool.submit((mount / name).read_bytes) for name in raw}
        until(lambda: hang.hits and remote.status()["reads"]["waiting"] > 0)
        engine = remote.status()["engine"]["pid"]
        children = Path(f"/proc/{engine}/task/{engine}/children").read_text().split()
        assert children
        for child in children:
            os.kill(int(child), signal.SIGKILL)
        proxied.remove(hang)
        for name, read in reads.items():
            assert read.result(60) == raw[name]
    assert remote.status()["remote"]["fetcher_restarts"] >= 1


def test_a_killed_mount(remote: Host, moto: StorageServer, proxied: FaultProxy, tmp_path: Path) -> None:
    """After kill -9 of the mount the next one works on the same mountpoint and refetches nothing that was complete."""
    raw = write_dataset(tmp_path / "stale", 40, 60_000, size_limit=MIB)
    moto.put_tree("stale", tmp_path / "stale")
    mount = remote.mounted(moto.url("stale"))
    for name, data in raw.items():
        assert (mount / name).read_bytes() == data
        until(lambda name=name: os.getxattr(mount / name, "user.mdsfs.state") == b"complete")
    remote.kill(remote.status()["mount"]["pid"])
    with pytest.raises(OSError) as raised:  # noqa: PT011
        os.listdir(mount)
    assert raised.value.errno == errno.ENOTCONN
    sent = proxied.bytes_sent("stale/shard")
    remote.mounted(moto.url("stale"))
    for name, data in raw.items():
        assert (mount / name).read_bytes() == data
    assert proxied.bytes_sent("stale/shard") == sent


def drop_pages(path: Path) -> None:
    """Forget a file's pages, so that reading it asks the mount."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
