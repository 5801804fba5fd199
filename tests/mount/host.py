"""The whole thing for tests: `mdsfs` as a command, a real engine, real mounts, and nothing left behind."""

from __future__ import annotations

import contextlib
import errno
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import zstandard

from mdsfs.mount.mountpoint import detach, mount_at
from streaming.engine.address import socket_path
from streaming.engine.client import EngineClient
from streaming.errors import EngineError
from streaming.writer import MDSWriter

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
# The test of 100,000 shards took 55 s on a busy machine.
SECONDS = 180


class Host:
    """A cache directory, a mountpoint, and the commands that use them. A context manager that clears up."""

    def __init__(self, folder: Path, environment: dict[str, str] | None = None, *, limit: str = "256mb") -> None:
        self.cache = folder / "cache"
        self.mountpoint = folder / "mnt"
        self.mountpoint.mkdir()
        self.limit = limit
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if mount_at(str(self.mountpoint)):
            subprocess.run(
                self._command("umount", str(self.mountpoint)), capture_output=True, check=False, timeout=SECONDS
            )
        if mount_at(str(self.mountpoint)):
            detach(str(self.mountpoint))
        self.stop_engine()

    def _command(self, *argv: str | Path) -> list[str]:
        return [sys.executable, "-m", "mdsfs", *map(str, argv)]

    def run(self, *argv: str | Path) -> subprocess.CompletedProcess[str]:
        """A command to its end."""
        return subprocess.run(
            self._command(*argv), env=self.environment, capture_output=True, text=True, check=False, timeout=SECONDS
        )

    def mount(self, source: str | Path, *options: str) -> subprocess.CompletedProcess[str]:
        """`mdsfs mount` in the background; the result is the parent's."""
        cache = ["--cache-dir", str(self.cache), "--cache-limit", self.limit]
        return self.run("mount", source, self.mountpoint, *cache, *options)

    def mounted(self, source: str | Path, *options: str) -> Path:
        """The mountpoint, after a mount that worked."""
        done = self.mount(source, *options)
        assert (done.returncode, done.stderr) == (0, ""), done
        return self.mountpoint

    def status(self) -> dict[str, Any]:
        """`mdsfs status --json` of the mount, with the engine's half, with which a busy engine may be late."""
        deadline = time.monotonic() + SECONDS
        while True:
            done = self.run("status", self.mountpoint, "--json")
            assert done.returncode == 0, done
            document: dict[str, Any] = json.loads(done.stdout)
            if document["mount"]["engine_error"] is None:
                return document
            assert time.monotonic() < deadline, document["mount"]

    def stop_engine(self) -> None:
        """End the engine of the cache directory, if one runs, and wait until it has."""
        with contextlib.suppress(EngineError, OSError), EngineClient.connect(self.cache, client="cli") as client:
            ended = os.pidfd_open(client.engine["pid"])
            client.stop()
            wait_for(ended)

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        """Kill a process and wait until it is gone."""
        ended = os.pidfd_open(pid)
        os.kill(pid, number)
        wait_for(ended)

    @property
    def has_engine(self) -> bool:
        """Whether an engine listens for the cache directory."""
        return self.cache.exists() and socket_path(self.cache).exists()


def wait_for(pidfd: int) -> None:
    """Until a process has ended."""
    import select

    assert select.select([pidfd], [], [], SECONDS)[0]
    os.close(pidfd)


def until(condition: Callable[[], object], seconds: float = SECONDS) -> None:
    """Until another process has done something that only its traces tell."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_read(path: Path, data: bytes) -> bool:
    """Whether a file can be read, with these bytes: where the deadline is short, a busy machine may miss it."""
    try:
        found = path.read_bytes()
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return False
    assert found == data
    return True


def write_dataset(folder: Path, samples: int = 60, size: int = 20_000, **options: Any) -> dict[str, bytes]:
    """An MDS dataset of random bytes; returns the raw shards by their shown names."""
    rng = np.random.default_rng(samples)
    options = {"size_limit": 300_000, "hashes": "sha1"} | options
    with MDSWriter(columns={"x": "bytes", "i": "int"}, out=str(folder), **options) as writer:
        for number in range(samples):
            # half of it can be compressed
            writer.write({"x": rng.bytes(size // 2) + bytes(size - size // 2), "i": number})
    return raw_shards(folder)


def raw_shards(folder: Path) -> dict[str, bytes]:
    """What a mount must show of a dataset's shards: decompressed by the reference decoders."""
    index = json.loads((folder / "index.json").read_bytes())
    found = {}
    for shard in index["shards"]:
        name = shard["raw_data"]["basename"]
        if shard["zip_data"] is None:
            found[name] = (folder / name).read_bytes()
        else:
            stored = (folder / shard["zip_data"]["basename"]).read_bytes()
            if shard["compression"].startswith("gz"):
                found[name] = gzip.decompress(stored)
            else:
                found[name] = zstandard.ZstdDecompressor().decompressobj(read_across_frames=True).decompress(stored)
    return found
