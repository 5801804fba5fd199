"""What becomes of reads when the host fails them: a full disk, a disk that turns read-only, no network, another time,
other credentials. Real filesystems, real servers; each trouble is told once when it begins and once when it ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from streaming.errors import CredentialsRefusedError, EngineRefusedError, StreamingError
from streaming.remote import RemoteOptions
from tests.engine.conftest import MIB, Data, Engine, Reader, write_dataset
from tests.mount.host import until
from tests.servers import Fault, FaultProxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.servers import StorageServer

    Start = Callable[..., Engine]

SHARD = 2 * MIB
FAKETIME = next(iter(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), None)


def events(engine: Engine) -> Counter[str]:
    """How often each event was told so far."""
    whole = engine.log.read_text().rpartition("\n")[0]  # the last line may be under way
    lines = [json.loads(line) for line in whole.splitlines()]
    return Counter(line["event"] for line in lines if "event" in line)


# ---- the disk under the cache ----------------------------------------------------------------------------------------


class Disk:
    """A small ext4 filesystem of its own."""

    def __init__(self, folder: Path) -> None:
        self.image = folder / "disk.img"
        self.root = folder / "disk"
        self.root.mkdir()
        with self.image.open("wb") as file:
            file.truncate(64 * MIB)
        subprocess.run(["mkfs.ext4", "-q", "-F", str(self.image)], check=True)

    def mount(self) -> str | None:
        """Mount it; the reason where that is not possible here."""
        done = subprocess.run(
            ["mount", "-o", "loop", str(self.image), str(self.root)], capture_output=True, text=True, check=False
        )
        return done.stderr.strip() or None

    def fill(self) -> Path:
        """What somebody else writes there, until nothing more fits."""
        path = self.root / "of somebody else"
        with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        return path

    def shut(self) -> None:
        """As after an error of the disk: the kernel takes no write any more."""
        subprocess.run(["mount", "-o", "remount,abort", str(self.root)], check=True)

    def unmount(self) -> None:
        # lazily, since a test that failed may still hold maps of files there
        subprocess.run(["umount", "--lazy", str(self.root)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if os.geteuid() != 0:
        pytest.skip("only root may mount a filesystem of its own")
    found = Disk(tmp_path)
    if (reason := found.mount()) is not None:
        pytest.skip(f"no loop device can be mounted here: {reason}")
    try:
        yield found
    finally:
        found.unmount()


@pytest.fixture
def data(tmp_path: Path) -> Data:
    return write_dataset(tmp_path / "data", shards=8, size=SHARD, form="zstd")


@pytest.fixture
def on_disk(disk: Disk, data: Data, start: Start, tmp_path: Path) -> Iterator[tuple[Engine, Reader]]:
    """An engine with its cache (not its log) on the disk, and a reader that has read the first shard."""
    (disk.root / "cache").mkdir()
    (tmp_path / "link").symlink_to(disk.root / "cache")
    engine = start(48 * MIB, "--log-format", "json", cache="link")
    with engine.client() as client:
        reader = Reader(client, str(data.folder), data)
        reader.check(0, 0, SHARD)
        yield engine, reader
        reader.close()
    engine.stop()


def test_a_disk_that_others_have_filled(disk: Disk, on_disk: tuple[Engine, Reader]) -> None:
    """What is cached is served from there, the rest is passed by; when there is room again, it is cached again. Both
    are told once, however many reads they concern."""
    engine, reader = on_disk
    filler = disk.fill()
    for _ in range(2):
        for shard in (0, 1, 2):
            reader.check(shard, 0, SHARD)
    assert reader.passed == 4
    status = engine.status()
    assert [each["what"] for each in status["problems"]] == ["cache-disk"]
    assert status["fills"]["failed"] == 0
    filler.unlink()
    passed = reader.passed

    def is_cached_again() -> bool:
        reader.check(3, 0, SHARD)
        return bool(reader.client.state(reader.dataset, 3)["state"] == "complete")

    until(is_cached_again)
    assert engine.status()["problems"] == []
    assert reader.passed >= passed
    reader.check(0, 0, SHARD)
    assert events(engine) == {"cache-disk-fails": 1, "cache-disk-works": 1}


def test_a_disk_that_turns_read_only(disk: Disk, on_disk: tuple[Engine, Reader]) -> None:
    """Cached bytes stay readable, all others are passed by, those of shards without a cache file too."""
    engine, reader = on_disk
    disk.shut()
    for _ in range(2):
        for shard in (0, 1, 2, 3):
            reader.check(shard, 0, SHARD)
    assert reader.passed >= 6
    assert [each["what"] for each in engine.status()["problems"]] == ["cache-disk"]
    # given back when the last job has ended, which need not be before its reader has its bytes
    until(lambda: engine.status()["cache"]["reserved_bytes"] == 0)


# ---- the network -----------------------------------------------------------------------------------------------------


@pytest.fixture
def behind(
    start: Start, rclone: StorageServer, proxy: FaultProxy, data: Data, request: pytest.FixtureRequest
) -> Iterator[tuple[Engine, Reader]]:
    """An engine and a reader of a dataset on a server behind the proxy."""
    prefix = request.node.name
    rclone.put_tree(prefix, data.folder)
    engine = start(32 * MIB, "--log-format", "json", env=rclone.variables_for(proxy.endpoint))
    with engine.client() as client:
        reader = Reader(client, rclone.url(prefix), data, options=RemoteOptions(endpoint_url=proxy.endpoint))
        yield engine, reader
        reader.close()


def test_a_network_that_is_gone(proxy: FaultProxy, behind: tuple[Engine, Reader]) -> None:
    """Reads of what is cached go on, others end with an error at their deadline; when it is back, all go on."""
    engine, reader = behind
    reader.check(0, 0, SHARD)
    proxy.add(Fault("refuse"))
    with pytest.raises(StreamingError):
        reader.ask(1, 0, SHARD, timeout=60)
    reader.check(0, 0, SHARD)
    assert [each["what"] for each in engine.status()["problems"]] == ["store"]
    proxy.clear()
    reader.check(1, 0, SHARD)
    until(lambda: engine.status()["problems"] == [])  # when the fetch has ended: its reader need not wait for that
    told = events(engine)
    assert (told["store-fails"], told["store-works"], told["fill-failed"]) == (1, 1, 0)


# ---- the clock -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(FAKETIME is None, reason="libfaketime is not installed (Debian: apt-get install faketime)")
def test_a_clock_that_jumps(start: Start, rclone: StorageServer, data: Data, tmp_path: Path) -> None:
    """A day ahead and a day back: cached bytes are served, waits and uptime do not notice; what needs a signature of
    the right time fails with a message that says so, and works as soon as the clock is right again."""
    rclone.put_tree("time", data.folder)
    clock = tmp_path / "clock"
    clock.write_text("+0")
    fake = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    begun = time.monotonic()
    engine = start(32 * MIB, "--log-format", "json", env=rclone.variables | fake)
    with engine.client() as client:
        reader = Reader(client, rclone.url("time"), data, options=RemoteOptions(endpoint_url=rclone.endpoint))
        reader.check(0, 0, SHARD)
        # what the server says about a time in its past is its own choice
        for shard, shift, said in ((1, "+86400", "this host's clock differs"), (2, "-86400", "refused")):
            clock.write_text(shift)
            reader.check(0, 0, SHARD)
            with pytest.raises(CredentialsRefusedError, match=said):
                reader.ask(shard, 0, SHARD)
            assert 0 <= engine.status()["engine"]["uptime_seconds"] <= time.monotonic() - begun
            clock.write_text("+0")
            reader.check(shard, 0, SHARD)
        reader.close()
    # said when the fetch has ended, which its reader need not wait for
    until(lambda: events(engine)["credentials-works"] == 2)


# ---- credentials -----------------------------------------------------------------------------------------------------


def write_keys(file: Path, key: str) -> None:
    file.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = s\n")


def test_credentials_that_are_replaced_on_disk(
    start: Start, moto: StorageServer, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused ones are read anew; a reader with the new ones is served beside one that began with the old."""
    keys = tmp_path / "credentials"
    write_keys(keys, "AKIDOLD")
    moto.put_tree("rotated", data.folder)
    with FaultProxy(moto.endpoint) as seen:
        variables = {name: value for name, value in moto.variables_for(seen.endpoint).items() if "KEY" not in name} | {
            "AWS_SHARED_CREDENTIALS_FILE": str(keys),
            "AWS_CONFIG_FILE": "/dev/null",
        }
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        engine = start(32 * MIB, "--log-format", "json", env=variables)
        options = RemoteOptions(endpoint_url=seen.endpoint)
        with contextlib.ExitStack() as open_ones:

            def reader() -> Reader:
                found = Reader(open_ones.enter_context(engine.client()), moto.url("rotated"), data, options=options)
                open_ones.callback(found.close)
                return found

            old = reader()
            old.check(0, 0, SHARD)
            write_keys(keys, "AKIDNEW")
            seen.add(Fault("status", "shard", status=403, code="InvalidAccessKeyId", times=1))
            old.check(1, 0, SHARD)
            reader().check(2, 0, SHARD)
            signed_by = [each.headers["authorization"].split("Credential=")[1][:7] for each in seen.seen("shard")]
            assert signed_by[-1] == "AKIDNEW"
            write_keys(keys, "AKIDNEWER")
            other = RemoteOptions(endpoint_url=seen.endpoint).identity(moto.url("rotated"))
            write_keys(keys, "AKIDNEW")
            with engine.client() as stranger, pytest.raises(EngineRefusedError, match="credentials"):
                stranger.open(moto.url("rotated"), other)
        until(lambda: engine.status()["problems"] == [])
    assert events(engine)["credentials-replaced"] == 1
