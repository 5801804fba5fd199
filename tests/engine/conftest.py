"""Real engines as child processes, small real datasets, and a reader that checks every byte."""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pytest
import zstandard

from streaming.engine.client import EngineClient
from streaming.engine.residency import ResidencyReader
from streaming.mds.seekable import compress_seekable
from streaming.mds.tables import load_tables
from streaming.remote import RemoteOptions
from tests.mount.host import until
from tests.servers.base import clean_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KIB, MIB = 1 << 10, 1 << 20
FRAME = 65_000  # of seekable shards, as shown
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def runtime_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets and logs of a user's engines go into the test's folder (root's have their own place)."""
    (tmp_path / "run").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))


class Engine:
    """One `mdsfs engine` child."""

    def __init__(self, cache: Path, limit: int, *options: str, env: dict[str, str] | None = None) -> None:
        self.cache, self.limit = cache, limit
        ready, theirs = os.pipe()
        command = [sys.executable, "-m", "mdsfs", "engine", "--cache-dir", str(cache), "--cache-limit", str(limit)]
        self.log = cache.with_name(cache.name + ".log")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--ready-fd", str(theirs), "--log-level", "debug", *options],
                pass_fds=(theirs,),
                cwd=ROOT,
                env=clean_environment() | (env or {}),
                stderr=log,
            )
        os.close(theirs)
        with open(ready, "rb") as pipe:
            self.said = pipe.read()

    def client(self, **options: Any) -> EngineClient:
        """A new connection."""
        return EngineClient.connect(self.cache, **options)

    def status(self) -> dict[str, Any]:
        """The status document."""
        with self.client(client="cli") as client:
            return dict(json.loads(client.status()))

    def status_when(self, condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """The first status from now on of which something is true."""
        found: dict[str, Any] = {}

        def is_true() -> object:
            found.clear()
            found.update(json.loads(client.status()))
            return condition(found)

        with self.client(client="cli") as client:
            until(is_true)
        return found

    def quiet(self) -> dict[str, Any]:
        """The status when no fill is running any more, and none has room left that it claimed."""
        return self.status_when(_is_quiet)

    def settled(self) -> dict[str, Any]:
        """The same when every client that left has been noticed as well."""
        return self.status_when(lambda status: _is_quiet(status) and len(status["clients"]) == 1)

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            self.stop()
        finally:
            self.kill()


def _is_quiet(status: dict[str, Any]) -> bool:
    return not status["fills"]["running"] and not status["cache"]["reserved_bytes"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Engine]]:
    """Starts engines; all of them have ended after the test."""
    with contextlib.ExitStack() as running:

        def begin(limit: int, *options: str, cache: str = "cache", env: dict[str, str] | None = None) -> Engine:
            engine = running.enter_context(Engine(tmp_path / cache, limit, *options, env=env))
            assert engine.said == b"ok\n", engine.log.read_text()
            return engine

        yield begin


@dataclass
class Data:
    """A dataset on disk, and what its shards are as shown."""

    folder: Path
    raw: list[bytes]
    stored: list[str]


def write_dataset(
    folder: Path, shards: int = 3, size: int = 2 * MIB, form: str = "raw", *, hashes: bool = True, seed: int = 0
) -> Data:
    """Shards of half random, half repeating bytes: `raw`, `zstd` (one frame) or `seekable`."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    data = Data(folder, [], [])
    entries = []
    for number in range(shards):
        half = rng.bytes(size // 2)
        raw = half + half[::-1] + b"!" * (size % 2)
        name = f"shard.{number:05d}.mds"
        entry: dict[str, Any] = {
            "column_encodings": ["bytes"],
            "column_names": ["x"],
            "column_sizes": [None],
            "compression": None,
            "format": "mds",
            "hashes": ["sha1"] if hashes else [],
            "raw_data": _file(name, raw, hashes=hashes),
            "samples": 1,
            "size_limit": 1 << 26,
            "version": 2,
            "zip_data": None,
        }
        stored = raw
        if form != "raw":
            name += ".zstd"
            edges = np.arange(0, len(raw) + 1, FRAME, dtype=np.int64)
            edges = np.append(edges, len(raw)) if edges[-1] != len(raw) else edges
            stored = compress_seekable(raw, edges, 3) if form == "seekable" else zstandard.compress(raw)
            entry |= {"compression": "zstd:3", "zip_data": _file(name, stored, hashes=hashes)}
        (folder / name).write_bytes(stored)
        data.raw.append(raw)
        data.stored.append(name)
        entries.append(entry)
    (folder / "index.json").write_text(json.dumps({"version": 2, "shards": entries}))
    return data


def _file(name: str, data: bytes, *, hashes: bool) -> dict[str, Any]:
    return {"basename": name, "bytes": len(data), "hashes": {"sha1": hashlib.sha1(data).hexdigest()} if hashes else {}}


@dataclass
class Reader:
    """Reads like our own reader: by the table, and by asking for what is absent."""

    client: EngineClient
    url: str
    data: Data
    validate: str | None = None
    options: RemoteOptions = field(default_factory=RemoteOptions)
    passed: int = 0
    asked: int = 0

    def __post_init__(self) -> None:
        source = self.client.open(self.url, self.options.identity(self.url), validate=self.validate)
        self.source = source
        self.dataset = source.datasets[0].dataset
        attached = self.client.attach(self.dataset)
        self.tables = load_tables(memoryview(mmap.mmap(attached.tables, 0, prot=mmap.PROT_READ)))
        table = mmap.mmap(attached.residency, 0, prot=mmap.PROT_READ)
        self.residency = ResidencyReader(table, self.tables.bitmap_at, self.tables.files["size"])
        attached.close()
        self.fds: dict[int, int] = {}

    def fd(self, file: int) -> int:
        """The file's descriptor."""
        if file not in self.fds:
            self.fds[file] = self.client.file(self.dataset, file).fd
        return self.fds[file]

    def read(self, file: int, offset: int, length: int, *, handle: int | None = None, timeout: float = 60.0) -> bytes:
        """The bytes, from the cache where they are resident, else by a want."""
        fd = self.fd(file)
        generation = self.residency.generation(file)
        if not generation & 1 and self.residency.is_resident(file, offset, length):
            found = os.pread(fd, length, offset)
            if self.residency.generation(file) == generation:
                return found
        return self.ask(file, offset, length, handle=handle, timeout=timeout)

    def ask(self, file: int, offset: int, length: int, *, handle: int | None = None, timeout: float = 60.0) -> bytes:
        """The bytes by a want."""
        self.asked += 1
        fd = self.fd(file)
        with self.client.held(self.dataset, [(file, offset, length)], handle=handle, timeout=timeout) as wanted:
            if wanted.direct:
                self.passed += 1
                return os.pread(wanted.direct[0].fd, length, 0)
            return os.pread(fd, length, offset)

    def check(self, file: int, offset: int, length: int, **options: Any) -> None:
        """Read and compare."""
        found = self.read(file, offset, length, **options)
        assert found == self.data.raw[file][offset : offset + length], f"file {file} at {offset}"

    def close(self) -> None:
        """End it."""
        for fd in self.fds.values():
            os.close(fd)
        self.client.close()


def disk_bytes(folder: Path) -> int:
    """Blocks on disk, as `du` counts."""
    total = folder.lstat().st_blocks * 512
    for base, folders, files in os.walk(folder):
        for name in (*folders, *files):
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(base, name)).st_blocks * 512
    return total
