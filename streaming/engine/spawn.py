"""Starts the engine of a cache directory as a process of its own, and waits until it can be connected to.

The engine outlives its starter: own session, `/` as working directory, output into a log beside the socket. It says
that it is ready, or why it will not be, through an inherited pipe; one that dies silently closes that pipe, which says
it too.
"""

from __future__ import annotations

import atexit
import dataclasses
import json
import os
import select
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streaming.errors import EngineUnavailableError, from_wire

from .address import prepare_runtime_directory

__all__ = ["EngineOptions", "spawn_engine"]

# Longer than any honest start (the tables are mapped, not read), shorter than the patience of whoever waits for a
# mount.
START_TIMEOUT = 30.0
# Unattended engines leave when nobody needs them; long enough for a job to restart its processes.
SPAWNED_IDLE_EXIT = 30.0

_started: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How an engine is to run. `None` leaves a choice to the engine, or to the one that runs already."""

    cache_dir: Path
    cache_limit: int | None = None
    verify: str | None = None
    processes: int | None = None
    threads: int | None = None
    part_size: int | None = None
    allow_other: bool = False
    idle_exit: float | None = SPAWNED_IDLE_EXIT
    log_level: str | None = None
    log_file: Path | None = None
    log_format: str | None = None
    metrics: str | None = None
    memory_limit: int | None = None

    def arguments(self) -> list[str]:
        """The command line after `mdsfs engine`."""
        pairs = [
            ("--cache-dir", Path(self.cache_dir).absolute()),
            ("--cache-limit", self.cache_limit),
            ("--verify", self.verify),
            ("--processes", self.processes),
            ("--threads", self.threads),
            ("--part-size", self.part_size),
            ("--idle-exit", self.idle_exit),
            ("--log-level", self.log_level),
            ("--log-file", self.log_file and Path(self.log_file).absolute()),
            ("--log-format", self.log_format),
            ("--metrics", self.metrics),
            ("--memory-limit", self.memory_limit),
        ]
        found = [text for name, value in pairs if value is not None for text in (name, str(value))]
        return [*found, "--allow-other"] if self.allow_other else found

    def expect(self) -> dict[str, Any]:
        """What `hello` asks of an engine that runs already: only what was chosen, not what is left to the engine."""
        wanted: dict[str, Any] = {
            "cache_limit": self.cache_limit,
            "verify": self.verify,
            "processes": self.processes,
            "threads": self.threads,
            "part_size": self.part_size,
            "allow_other": self.allow_other or None,
            "metrics": self.metrics,
            "memory_limit": self.memory_limit,
        }
        return {name: value for name, value in wanted.items() if value is not None}


def spawn_engine(options: EngineOptions, *, timeout: float = START_TIMEOUT) -> None:
    """Start an engine and return when it accepts connections; raises what kept it from starting.

    Losing the race for the cache directory against another starter is an EngineRefusedError: connect to the winner.
    """
    path = _log_path(options)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    if options.log_file is None:
        options = dataclasses.replace(options, log_file=path)
    ready, theirs = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "mdsfs", "engine", *options.arguments(), "--ready-fd", str(theirs)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=_environment(),
            start_new_session=True,
            pass_fds=(theirs,),
        )
    except OSError as error:
        os.close(ready)
        raise EngineUnavailableError(f"cannot start the engine: {error}") from error
    finally:
        os.close(theirs)
        os.close(log)
    try:
        _wait_ready(ready, process, time.monotonic() + timeout, options)
    finally:
        os.close(ready)
        # Nobody waits for an engine: it belongs to init as soon as its starter ends. Until then those that have ended
        # are collected when the next one is started, and at the end.
        _started.append(process)
        _collect()


@atexit.register
def _collect() -> None:
    _started[:] = [each for each in _started if each.poll() is None]


def _log_path(options: EngineOptions) -> Path:
    folder = prepare_runtime_directory(open_to_others=options.allow_other)
    found = os.stat(options.cache_dir)
    return folder / f"{found.st_dev:x}-{found.st_ino:x}.log"


def _environment() -> dict[str, str]:
    # With `/` as working directory a package that was importable only from the caller's would be lost.
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *(p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


def _wait_ready(ready: int, process: subprocess.Popen[bytes], deadline: float, options: EngineOptions) -> None:
    said = b""
    poll = select.poll()
    poll.register(ready, select.POLLIN | select.POLLHUP)
    while not said.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            process.kill()
            process.wait()
            raise EngineUnavailableError(
                f"the engine of {options.cache_dir} did not get ready in time: see {options.log_file}"
            )
        piece = os.read(ready, 65536)
        if not piece:
            break
        said += piece
    if said == b"ok\n":
        return
    # It is ending by itself; its exit is near, and waiting keeps no zombie.
    status = process.wait()
    try:
        wire = json.loads(said)
    except ValueError:
        raise EngineUnavailableError(
            f"the engine of {options.cache_dir} ended while starting (status {status}): see {options.log_file}"
        ) from None
    raise from_wire(wire)
