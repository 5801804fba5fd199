"""The processes of a run: who there is, what each one is, and which have ended without our doing.

The run is process 1 of a namespace of its own: whatever is orphaned becomes its child, and nothing outlives it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests.servers import Unavailable

__all__ = ["INSIDE", "Process", "Processes", "enter_namespace", "named", "running"]

INSIDE = "MDSFS_CHAOS_NAMESPACE"
# What a process is, by words of its command line.
_KINDS = (
    ("fetcher", {"mdsfs.engine.fetching.fetcher"}),
    ("helper", {"mdsfs.engine.sources.indexer"}),
    ("helper", {"mdsfs.engine.planning.orderer"}),
    ("engine", {"mdsfs", "engine"}),
    ("mount", {"mdsfs", "mount"}),
    ("reader", {"tests.chaos.reader"}),
)


def enter_namespace(module: str, arguments: list[str]) -> None:
    """Start this program over as process 1 of its own process and mount namespace, which end with it.

    Returns when it is in them. Raises Unavailable where the kernel or the user's rights don't allow it.
    """
    if os.environ.get(INSIDE) != "1":
        command = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
        probe = subprocess.run([*command, "mount", "-t", "tmpfs", "tmpfs", "/run"], capture_output=True, text=True)
        if probe.returncode:
            raise Unavailable(f"namespaces for processes and mounts are needed (root): {probe.stderr.strip()}")
        os.execvpe(command[0], [*command, sys.executable, "-m", module, *arguments], os.environ | {INSIDE: "1"})
    # Copies of what others have mounted: as long as we kept them, the mounts' processes would not end.
    subprocess.run(["umount", "--all", "--lazy", "--types", "fuse.mdsfs"], check=False, capture_output=True)


@dataclass(frozen=True, slots=True)
class Process:
    """One line of the process table."""

    pid: int
    parent: int
    state: str
    command: tuple[str, ...]

    @property
    def kind(self) -> str:
        """`engine`, `fetcher`, … or `other`."""
        return next((kind for kind, words in _KINDS if words <= {*self.command}), "other")

    def __str__(self) -> str:
        return f"{self.pid} ({self.kind}, {self.state}): {' '.join(self.command)[:120]}"


def running() -> list[Process]:
    """Every process of this namespace but ourselves, zombies included."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with contextlib.suppress(OSError):
                stat = Path("/proc", name, "stat").read_text().rpartition(")")[2].split()
                command = Path("/proc", name, "cmdline").read_bytes().decode(errors="replace").split("\0")
                found.append(Process(int(name), int(stat[1]), stat[0], tuple(command)))
    return found


def named(kind: str, processes: list[Process] | None = None) -> list[Process]:
    """The living ones of a kind, oldest first."""
    found = running() if processes is None else processes
    return sorted((each for each in found if each.kind == kind and each.state not in "ZX"), key=lambda each: each.pid)


@dataclass
class Processes:
    """Who was seen, and how they ended."""

    own: set[int] = field(default_factory=set)  # children that somebody else here waits for
    killed: set[int] = field(default_factory=set)
    _alive: dict[int, Process] = field(default_factory=dict)
    _serving: set[int] = field(default_factory=set)

    def kill(self, process: Process) -> None:
        """kill -9."""
        self.killed.add(process.pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)

    def look(self) -> list[Process]:
        """Collect orphans that have ended; returns engines and fetchers that have ended without our having killed them.

        A fetcher ends with its engine. An engine without fetchers has not served yet: another one was faster.
        """
        now = {each.pid: each for each in running() if each.state not in "ZX"}
        gone = [each for pid, each in self._alive.items() if pid not in now and pid not in self.killed]
        self._alive = now
        self._reap()
        alive = now.keys() - self.killed
        ended = [
            each for each in gone if each.pid in self._serving or (each.kind == "fetcher" and each.parent in alive)
        ]
        self._serving = {each.parent for each in now.values() if each.kind == "fetcher"}
        return ended

    def _reap(self) -> None:
        for each in running():
            if each.state == "Z" and each.parent == os.getpid() and each.pid not in self.own:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(each.pid, os.WNOHANG)
