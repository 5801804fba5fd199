"""A store that misbehaves: reads give right bytes or a clear errno before their deadline, and disturb nobody else."""

from __future__ import annotations

import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.servers import Fault, FaultProxy

from .harness import why_not_mountable
from .host import Host, is_read, until, write_dataset
from .test_end_to_end import MIB, drop_pages, pread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.servers import StorageServer

pytestmark = [
    pytest.mark.mounted,
    pytest.mark.skipif(why_not_mountable() is not None, reason=str(why_not_mountable())),
]


class Remote:
    """Three datasets on a store behind a proxy: raw, seekable, and zstd in one frame per shard."""

    def __init__(self, host: Host, proxy: FaultProxy, server: StorageServer, folder: Path) -> None:
        self.host, self.proxy, self.server = host, proxy, server
        self.raw = {
            "raw": write_dataset(folder / "raw", 60, 60_000, size_limit=MIB),
            "zip": write_dataset(folder / "zip", 60, 60_000, size_limit=MIB, compression="zstd"),
        }
        for name in self.raw:
            server.put_tree(name, folder / name)

    def mount(self, name: str, *options: str) -> Path:
        return self.host.mounted(self.server.url(name), *options)


@pytest.fixture
def remote(tmp_path: Path, moto: StorageServer) -> Iterator[Remote]:
    with FaultProxy(moto.endpoint) as proxy, Host(tmp_path, moto.variables_for(proxy.endpoint)) as host:
        yield Remote(host, proxy, moto, tmp_path)


def error_of(action: Callable[[], object]) -> int | None:
    """The errno that an action fails with."""
    with pytest.raises(OSError) as raised:  # noqa: PT011
        action()
    return raised.value.errno


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", "shard", times=3, status=503),
        Fault("status", "shard", times=3, status=500, code="InternalError"),
        Fault("reset", "shard", times=3, after=50_000),
        Fault("truncate", "shard", times=3, after=50_000),
        Fault("refuse", "shard", times=3),
        Fault("no-range", "shard", times=3),
        Fault("corrupt", "shard", times=1, after=50_000),
    ],
    ids=lambda fault: fault.kind + str(fault.status),
)
@pytest.mark.parametrize("name", ["raw", "zip"])
def test_passing_faults(remote: Remote, fault: Fault, name: str) -> None:
    """Bursts of 5xx, resets, cut bodies, refused connections and flipped bytes that pass: the bytes are right."""
    mount = remote.mount(name, "--verify", "shard")
    remote.proxy.add(fault)
    for shard, data in remote.raw[name].items():
        assert (mount / shard).read_bytes() == data
    assert fault.hits > 0


@pytest.mark.parametrize("name", ["raw", "zip"])
def test_wrong_bytes_are_never_served(remote: Remote, name: str) -> None:
    """An object whose bytes stay wrong is EIO with --verify=shard, says so in its state, and spoils no other shard."""
    mount = remote.mount(name, "--verify=shard")
    remote.proxy.add(Fault("corrupt", "shard.00001", after=30_000))
    first, second = sorted(remote.raw[name])[:2]
    assert error_of((mount / second).read_bytes) == errno.EIO
    assert os.getxattr(mount / second, "user.mdsfs.state") == b"failed"
    assert (mount / first).read_bytes() == remote.raw[name][first]
    assert remote.host.status()["fills"]["failed"] >= 1


def test_frames_catch_wrong_bytes_by_themselves(remote: Remote) -> None:
    """A flipped byte in a seekable shard is caught by the frame's checksum, without --verify."""
    mount = remote.mount("zip")
    remote.proxy.add(Fault("corrupt", "shard.00000", after=1000))
    shard = min(remote.raw["zip"])
    assert error_of(lambda: pread(mount / shard, 4096, 8192)) == errno.EIO


def test_a_deleted_object(remote: Remote) -> None:
    """An object that is gone is ENOENT; what was fetched of it before is still served."""
    mount = remote.mount("raw")
    first, second = sorted(remote.raw["raw"])[:2]
    assert (mount / first).read_bytes() == remote.raw["raw"][first]
    for shard in (first, second):
        remote.server.delete(f"raw/{shard}")
    drop_pages(mount / first)
    assert (mount / first).read_bytes() == remote.raw["raw"][first]
    assert error_of((mount / second).read_bytes) == errno.ENOENT


def test_a_replaced_object(remote: Remote) -> None:
    """An object that was replaced in mid-read is ESTALE: bytes of two versions are never mixed."""
    mount = remote.mount("raw")
    shard = min(remote.raw["raw"])
    data = remote.raw["raw"][shard]
    assert pread(mount / shard, 4096, 0) == data[:4096]
    remote.server.put(f"raw/{shard}", bytes(len(data)))
    assert error_of(lambda: pread(mount / shard, 4096, len(data) - 8192)) == errno.ESTALE
    drop_pages(mount / shard)
    assert pread(mount / shard, 4096, 0) == data[:4096]


def test_revoked_credentials(remote: Remote) -> None:
    """A store that begins to refuse is EACCES at once, and works again when it lets us in."""
    mount = remote.mount("raw")
    remote.proxy.add(Fault("status", "shard", status=403, code="AccessDenied"))
    shard = min(remote.raw["raw"])
    start = time.monotonic()
    assert error_of((mount / shard).read_bytes) == errno.EACCES
    assert time.monotonic() - start < 55  # it is not tried again until the deadline, 60 s
    remote.proxy.clear()
    assert (mount / shard).read_bytes() == remote.raw["raw"][shard]


def test_a_silent_store(remote: Remote) -> None:
    """When the store accepts and says nothing, a read is EIO at its deadline, neither before nor long after."""
    mount = remote.mount("raw", "--read-timeout=1")
    remote.proxy.add(Fault("hang", "shard"))
    shard = min(remote.raw["raw"])
    start = time.monotonic()
    assert error_of((mount / shard).read_bytes) == errno.EIO
    assert 0.9 < time.monotonic() - start < 55  # without the option it would be 60 s
    remote.proxy.clear()
    until(lambda: is_read(mount / shard, remote.raw["raw"][shard]))


def test_a_body_that_stalls(remote: Remote) -> None:
    """A body that stops half-way delays only until the deadline, and what had come is served later."""
    mount = remote.mount("zip", "--read-timeout=1")
    remote.proxy.add(Fault("stall", "shard", after=20_000))
    shard = min(remote.raw["zip"])
    assert error_of((mount / shard).read_bytes) == errno.EIO
    remote.proxy.clear()
    until(lambda: is_read(mount / shard, remote.raw["zip"][shard]))


def test_stuck_readers_disturb_nobody(remote: Remote) -> None:
    """With twenty readers stuck on one object a resident file can answer in 50 ms, and other cold files are served."""
    mount = remote.mount("raw")
    stuck, warm, cold = sorted(remote.raw["raw"])[:3]
    assert (mount / warm).read_bytes() == remote.raw["raw"][warm]
    hang = remote.proxy.add(Fault("hang", stuck))
    with ThreadPoolExecutor(20) as pool:
        size = len(remote.raw["raw"][stuck])
        reads = [pool.submit(pread, mount / stuck, 4096, number * size // 20) for number in range(20)]
        until(lambda: hang.hits and remote.host.status()["mount"]["reads_waiting"] >= 20)
        until(lambda: seconds_of_a_read(mount / warm, remote.raw["raw"][warm]) < 0.05)
        assert (mount / cold).read_bytes() == remote.raw["raw"][cold]
        assert len(list(mount.iterdir())) == len(remote.raw["raw"]) + 2
        assert not any(read.done() for read in reads)
        remote.proxy.clear()
        for number, read in enumerate(reads):
            assert read.result(60) == remote.raw["raw"][stuck][number * size // 20 :][:4096]


def seconds_of_a_read(path: Path, data: bytes) -> float:
    """How long the mount takes for 4 KiB that it has."""
    drop_pages(path)
    start = time.monotonic()
    assert pread(path, 4096, 65536) == data[65536:][:4096]
    return time.monotonic() - start
