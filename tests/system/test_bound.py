"""The limit of the cache, measured where it counts: blocks in use on a filesystem of the cache's own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import pytest

from streaming import MDSWriter
from tests.mount.host import ROOT, Host, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import StorageServer

pytestmark = [
    pytest.mark.mounted,
    pytest.mark.slow,
    pytest.mark.skipif(os.getuid() != 0, reason="mounting a filesystem for the cache needs root"),
]

MIB = 1 << 20
READER = Path(__file__).with_name("bound_reader.py")


@contextmanager
def filesystem(kind: str, folder: Path, size: int) -> Iterator[Path]:
    """A fresh filesystem of some megabytes, mounted."""
    place = folder / "fs"
    place.mkdir()
    if kind == "tmpfs":
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    else:
        image = folder / "image"
        image.touch()
        os.truncate(image, size)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True, capture_output=True)
        command = ["mount", "-o", "loop", str(image), str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{kind} can't be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


class Watch:
    """Samples the blocks in use until it is left; keeps the most."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._end = threading.Event()
        self._start = self._used()
        self.most = self.samples = 0
        self._thread = threading.Thread(target=self._run)

    def _used(self) -> int:
        found = os.statvfs(self._place)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def _run(self) -> None:
        while not self._end.wait(0.002):
            self.most = max(self.most, self._used() - self._start)
            self.samples += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end.set()
        self._thread.join()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """512 MiB of raw shards of 8 MiB."""
    folder = tmp_path_factory.mktemp("bound") / "source"
    rng = np.random.default_rng(3)
    block = rng.bytes(32 * 1024)
    with MDSWriter(columns={"data": "bytes", "id": "int"}, out=str(folder), size_limit="8mb") as writer:
        for number in range(512 * 32 + 200):
            # every 4 KiB of a sample tells which sample it is of
            stamp = number.to_bytes(8, "little")
            data = b"".join(stamp + block[at + 8 : at + 4096] for at in range(0, len(block), 4096))
            writer.write({"data": data, "id": number})
    return folder


def readers(mounted: Path, source: Path, end: Path) -> list[subprocess.Popen[str]]:
    """Four of each kind, until `end` exists; the last one forks in mid-run."""
    started = []
    for number in range(8):
        kind = "pread" if number < 4 else "samples"
        more = ["fork"] if number == 7 else []
        command = [sys.executable, str(READER), kind, str(mounted), str(source), str(number), str(end), *more]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        started.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    return started


@pytest.mark.parametrize(("kind", "limit", "seconds"), [("tmpfs", 64, 14), ("ext4", 64, 14), ("tmpfs", 5, 6)])
def test_blocks_never_exceed_the_limit(
    kind: str, limit: int, seconds: float, source: Path, rclone: StorageServer, tmp_path: Path
) -> None:
    """Eight readers of both kinds, one stopped for a while, one that forks: right bytes, never a block too many."""
    if not rclone_has(rclone, source):
        rclone.put_tree("bound", source)
    with filesystem(kind, tmp_path, 256 * MIB) as place, Watch(place) as watch:
        (tmp_path / "host").mkdir()
        with Host(tmp_path / "host", rclone.variables, limit=f"{limit}mb") as host:
            host.cache = place / "cache"
            mounted = host.mounted(rclone.url("bound"))
            begun, end = time.monotonic(), tmp_path / "end"
            running = readers(mounted, source, end)
            try:
                stopped = running[5]
                until(lambda: host.status()["cache"]["resident_bytes"] >= MIB)
                stopped.send_signal(signal.SIGSTOP)
                time.sleep(min(10, seconds / 2))  # the figure is the requirement's: a reader that is stopped that long
                stopped.send_signal(signal.SIGCONT)
                # as long as it was meant to be, and on a slow machine until the cache has been full
                until(lambda: time.monotonic() > begun + seconds and (limit < 64 or evictions(host)), 120)
                end.touch()
                results = [process.communicate(timeout=120) for process in running]
            finally:
                for process in running:
                    process.kill()
                    process.wait()
            assert [process.returncode for process in running] == [0] * 8, results
            assert all(int(out) > 0 for out, _ in results)
    assert watch.samples > 100
    assert 0 < watch.most <= limit * MIB, f"{watch.most / MIB:.2f} MiB of {limit}"


def rclone_has(rclone: StorageServer, source: Path) -> bool:
    client = rclone.client()
    found = client.list_objects_v2(Bucket=rclone.bucket, Prefix="bound/").get("KeyCount", 0)
    client.close()
    return bool(found == len(list(source.iterdir())))


def evictions(host: Host) -> int:
    return int(host.status()["evictions"]["count"])
