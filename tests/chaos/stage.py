"""What a chaos run plays on: a real S3 server behind a proxy, two caches on disks of their own, a mount, readers."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from mdsfs.mount.mountpoint import mount_at
from tests.chaos import data
from tests.chaos.disk import Disk
from tests.chaos.processes import Process, Processes, named
from tests.chaos.reader import DOORS
from tests.chaos.tally import Tally
from tests.servers import FaultProxy, RcloneServer, clean_environment, free_port

__all__ = ["LIMITS", "READ_TIMEOUT", "Mount", "Reader", "Stage"]

MIB = 1 << 20
ROOT = Path(__file__).resolve().parents[2]
# Bytes of each cache; the data sets take three times as much.
LIMITS = {"mount": 24 * MIB, "remote": 20 * MIB}
# ... and of the disks under them, which others fill
DISKS = {"mount": 96 * MIB, "remote": 80 * MIB}
# The doors of the eight readers.
READERS = ("pread", "pread", "mapped", "samples", "remote", "remote", "epochs", "remote-epochs")
# Of reads on the mount; the library's own is longer.
READ_TIMEOUT = 10.0
COMMAND_SECONDS = 120.0
# How `mdsfs mount` may end while things break: the store fails, the engine is killed.
STARTS = (5, 11)
# An endless loop of attempts to mount is not a busy one.
PAUSE = 0.1


class Reader:
    """One of the readers: its process, and the ones that follow when it was killed."""

    def __init__(self, number: int, stage: Stage) -> None:
        self.number, self.kind, self._stage = number, READERS[number], stage
        self.lives = 0
        self.stopped_at = 0  # ns of the monotonic clock, 0: it runs
        self.tally = Tally(stage.places.logs / f"reader-{number}.tally")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """A new process."""
        stage = self._stage
        seed = f"{stage.seed} {self.number} {self.lives}"
        self.lives += 1
        self.tally["since"] = 0
        arguments = [self.kind, str(self.number), seed, str(stage.places.home), stage.server.url().rstrip("/")]
        with (stage.places.logs / f"reader-{self.number}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.reader", *arguments, str(LIMITS["remote"])],
                cwd=ROOT,
                env=stage.environment,
                stdout=log,
                stderr=log,
            )
        stage.processes.own.add(self.process.pid)

    @property
    def pid(self) -> int:
        """Of its present process."""
        assert self.process is not None
        return self.process.pid

    def stop(self) -> None:
        """SIGSTOP."""
        self.stopped_at = time.monotonic_ns()
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self, pid: int) -> None:
        """SIGCONT, if it is still the process that was stopped. What it slept does not count as reading."""
        if self.stopped_at and pid == self.pid:
            self.tally["stopped"] += time.monotonic_ns() - self.stopped_at
            self.stopped_at = 0
            os.kill(self.pid, signal.SIGCONT)

    def seconds_in_read(self) -> float:
        """How long the read under way has taken, 0.0 between reads."""
        since = self.tally["since"]
        if not since or self.stopped_at:
            return 0.0
        return (time.monotonic_ns() - since) / 1e9


class Mount(threading.Thread):
    """Keeps the mount: `mdsfs mount` again, on the same mountpoint, whenever its process has ended."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(name="mount")
        self._stage = stage
        self._ending, self._end = os.pipe()
        self.made = 0
        self.failures: dict[str, int] = {}
        self.unexpected: str | None = None
        self._is_made = False
        self.first = threading.Event()

    def run(self) -> None:
        while not self._is_ending(0.0):
            daemon = next(iter(named("mount")), None)
            if daemon is None:
                self._mount()
                continue
            with contextlib.suppress(ProcessLookupError):
                ended = os.pidfd_open(daemon.pid)
                select.select([ended, self._ending], [], [])
                os.close(ended)
            if self._is_made and daemon.pid not in self._stage.processes.killed and not self._is_ending(0.0):
                self.unexpected = f"the mount has ended by itself: {daemon}"

    def _is_ending(self, seconds: float) -> bool:
        return bool(select.select([self._ending], [], [], seconds)[0])

    def _mount(self) -> None:
        done = self._stage.mdsfs("mount", *self._stage.mount_arguments)
        self._is_made = done.returncode == 0
        if self._is_made:
            self.made += 1
            self.first.set()
            return
        killed = done.returncode == -signal.SIGKILL or "signal 9" in done.stderr  # itself, or its child in between
        late = "does not answer" in done.stderr  # the dead mount was looked at by a process that took its time to start
        if not killed and not late and done.returncode not in STARTS:
            self.unexpected = f"mdsfs mount ended with {done.returncode}: {done.stderr}"
        cause = f"exit {done.returncode}: {done.stderr.strip()[:160]}"
        self.failures[cause] = self.failures.get(cause, 0) + 1
        self._is_ending(PAUSE)

    def end(self) -> None:
        """Keep it no longer; it is there afterwards."""
        if not self.is_alive():
            return
        os.write(self._end, b".")
        self.join()
        os.close(self._end)
        os.close(self._ending)


class Stage:
    """All of it; a context manager. `environment` is that of every command."""

    def __init__(self, home: Path, seed: int) -> None:
        self.seed = seed
        self.places = data.Places(home)
        self.processes = Processes()
        self.server = RcloneServer(self.places.bucket.parent, free_port())
        self._is_serving = False
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        places = self.places
        for folder in (places.mountpoint, places.logs, places.home / "tmp", places.home / "home"):
            folder.mkdir(parents=True)
        data.write(places)
        with ExitStack() as stack:
            # nobody outside sees these, and what is left in them is ours
            for folder in ("/run", "/dev/shm"):
                subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=True)
            self.start_server()
            stack.callback(self.server.stop)
            self.proxy = stack.enter_context(FaultProxy(self.server.endpoint))
            self.environment = clean_environment(
                **self.server.variables_for(self.proxy.endpoint),
                TMPDIR=str(places.home / "tmp"),
                HOME=str(places.home / "home"),
                PYTHONPATH=str(ROOT),
            )
            self.disks = {
                name: stack.enter_context(Disk(name, places.filesystem(name), DISKS[name], LIMITS[name]))
                for name in DISKS
            }
            self.mount = Mount(self)
            self.readers = [Reader(number, self) for number in range(len(READERS))]
            assert {reader.kind for reader in self.readers} == set(DOORS)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    @property
    def mount_arguments(self) -> list[str]:
        """Of `mdsfs mount`."""
        cache = ["--cache-dir", str(self.places.cache("mount")), "--cache-limit", str(LIMITS["mount"])]
        log = ["--log-file", str(self.places.logs / "mount.log")]
        source = self.server.url().rstrip("/")
        return [source, str(self.places.mountpoint), *cache, *log, "--read-timeout", str(READ_TIMEOUT)]

    def start_server(self) -> None:
        """The S3 server, at the same address again."""
        self.server.start()
        self.processes.own.add(self.server.pid)
        self._is_serving = True

    def kill_server(self) -> bool:
        """kill -9; False where it is down already."""
        was, self._is_serving = self._is_serving, False
        if was:
            os.kill(self.server.pid, signal.SIGKILL)
            self.server.stop()  # collects it, and removes its log
        return was

    def mdsfs(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command to its end."""
        command = [sys.executable, "-m", "mdsfs", *arguments]
        with subprocess.Popen(
            command,
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            self.processes.own.add(process.pid)
            try:
                out, err = process.communicate(timeout=COMMAND_SECONDS)
            except BaseException:
                process.kill()
                raise
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def has_ended(self, process: Process) -> bool:
        """Whether this engine, or that of this fetcher, says in its log that it has ended on purpose."""
        engine = process.pid if process.kind == "engine" else process.parent
        logs = Path("/run/mdsfs").glob("*.log")
        return any(f"engine pid={engine} ends" in log.read_text(errors="replace") for log in logs)

    def is_mounted(self) -> bool:
        """Whether the kernel has a mount there, dead or alive."""
        return mount_at(str(self.places.mountpoint)) is not None
