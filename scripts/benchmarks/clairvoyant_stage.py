"""Where `scripts/bench clairvoyant` plays: a server behind a link, disks for caches, contestants as processes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import clairvoyant_data
from clairvoyant_data import MIB, Data

from tests.servers.base import clean_environment
from tests.servers.link import Link, LinkedNginx, Sent

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
CHILD = Path(__file__).with_name("clairvoyant_child.py")
PEER = ROOT / ".peer" / "bin" / "python"
MDSFS = [sys.executable, "-m", "mdsfs"]
# How often the disk is looked at; a fill of 8 MiB at 125 MB/s takes three times as long.
LOOK = 0.02


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the outcome."""

    figure: str
    text: str
    measured: float
    bar: float
    at_least: bool = False

    @property
    def good(self) -> bool:
        return self.measured >= self.bar if self.at_least else self.measured <= self.bar


@dataclass
class Epoch:
    """An epoch of one contestant, and what the server sent meanwhile."""

    waits: list[float]
    wall: float
    samples: int
    delivered: int
    ids: str
    sent: Sent

    @property
    def first(self) -> float:
        """Seconds to the first batch."""
        return self.waits[0]

    @property
    def stall(self) -> float:
        """Seconds that all batches but the first were waited for."""
        return sum(self.waits[1:])


class Disk:
    """A file system of its own for one cache, so that what is unlinked but open counts as well; knows its peak."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "mdsfs-bench", str(folder)]
        subprocess.run(command, check=True)
        self.peak = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(LOOK):
            found = os.statvfs(self.folder)
            self.peak = max(self.peak, (found.f_blocks - found.f_bfree) * found.f_frsize)

    def close(self) -> None:
        """Let go of it: whatever still holds files there loses them with its end."""
        self._over.set()
        self._thread.join()
        subprocess.run(["umount", "-l", str(self.folder)], check=True)


class Contestant:
    """A training process: ours or the peer's."""

    def __init__(self, stage: Stage, *, peer: bool = False, **environment: str) -> None:
        variables = clean_environment(
            **stage.server.variables, AWS_ACCESS_KEY_ID="none", AWS_SECRET_ACCESS_KEY="none", **environment
        )
        if not peer:
            variables["PYTHONPATH"] = str(ROOT)
        self.name = "mosaicml-streaming" if peer else "ours"
        self._stage = stage
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in close()
        self._process = subprocess.Popen(
            [str(PEER) if peer else sys.executable, "-P", str(CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=variables,
            cwd=tempfile.gettempdir(),
        )

    def ask(self, task: str, **arguments: Any) -> None:
        """Begin a task."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"task": task, **arguments}) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """What the task came to."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": "the process ended"}
        if "error" in answer:
            self._log.seek(0)
            raise RuntimeError(f"{self.name}: {answer['error']}\n{self._log.read()[-2000:]}")
        return answer["value"]

    def open(self, **arguments: Any) -> float:
        """Make the dataset object; seconds."""
        self.ask("open", **{"batch_size": 32, "workers": 0} | arguments)
        return float(self.answer())

    def epoch(self, step: float = 0.0, **arguments: Any) -> Epoch:
        """Read an epoch, alone."""
        before = self._stage.server.sent()
        self.ask("epoch", step=step, **arguments)
        return Epoch(**self.answer(), sent=self._stage.server.sent() - before)

    def close(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


@dataclass
class Stage:
    """Everything that the figures share; each dataset is written when it is first wanted."""

    quick: bool
    home: Path
    server: LinkedNginx
    link: Link
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _data: dict[str, Data] = field(default_factory=dict)
    _disks: int = 0

    @classmethod
    @contextlib.contextmanager
    def open(cls, quick: bool) -> Iterator[Self]:
        home = Path(tempfile.mkdtemp(prefix="mdsfs-bench-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        home.chmod(0o755)
        try:
            with LinkedNginx(home / "root") as server:
                yield cls(quick, home, server, Link(server))
        finally:
            shutil.rmtree(home, ignore_errors=True)

    def data(self, name: str) -> Data:
        """The dataset, served."""
        if name not in self._data:
            folder = self.server.root / self.server.bucket / name
            self._data[name] = clairvoyant_data.write(name, folder)
        return self._data[name]

    def row(self, figure: str, text: str, measured: float, bar: float, *, at_least: bool = False) -> None:
        """Keep one line, and show it."""
        row = Row(figure, text, measured, bar, at_least)
        self.rows.append(row)
        sign = "≥" if at_least else "≤"
        print(f"{'ok    ' if row.good else 'MISSED'} {figure:<4} {text}: {measured:.3g} ({sign} {bar:g})", flush=True)

    def note(self, text: str) -> None:
        """Keep a figure that has no bar, and show it."""
        self.notes.append(text)
        print(f"       {text}", flush=True)

    @contextlib.contextmanager
    def disk(self, limit: int, *, peer: bool = False) -> Iterator[Disk]:
        """A place for a cache of `limit` bytes. Ours must keep the limit: that is a figure (F10) each time."""
        self._disks += 1
        disk = Disk(self.home / f"disk{self._disks}", max(4 * limit, 1 << 30))
        try:
            yield disk
        finally:
            stop = [*MDSFS, "engine", "--cache-dir", str(disk.folder / "cache"), "--stop"]
            if not peer:
                subprocess.run(stop, check=False, capture_output=True, cwd=ROOT)
            disk.close()
        if not peer:
            self.peaks.append(disk.peak / limit)

    peaks: list[float] = field(default_factory=list)

    @contextlib.contextmanager
    def contestant(self, *, peer: bool = False, **environment: str) -> Iterator[Contestant]:
        """A training process, ended with the block."""
        found = Contestant(self, peer=peer, **environment)
        try:
            yield found
        finally:
            found.close()

    def source(self, data: Data, disk: Disk, limit: int, **order: Any) -> dict[str, Any]:
        """Arguments of `StreamingDataset` for a dataset behind the link, cached on a disk."""
        cache = {"remote": self.server.url(data.name), "local": str(disk.folder / "cache"), "cache_limit": limit}
        return {**cache, "shuffle": True, **order}

    def status(self, disk: Disk) -> dict[str, Any]:
        """What the engine of a cache says."""
        command = [*MDSFS, "status", "--cache-dir", str(disk.folder / "cache"), "--json"]
        found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, cwd=ROOT).stdout)
        return found


def steady_limit(data: Data, ratio: float) -> int:
    """A cache limit in whole MiB, and never below what an engine takes at least."""
    return max(int(data.bytes * ratio) // MIB, 4) * MIB
