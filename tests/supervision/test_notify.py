"""What supervisors are told, by a real datagram socket and a real child."""

from __future__ import annotations

import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from mdsfs.supervision.notify import STATUS_SECONDS, Supervisor
from mdsfs.supervision.probe import probing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def supervisor_at(name: str) -> Iterator[socket.socket]:
    """A supervisor's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name)
        sock.settimeout(10)
        yield sock


@pytest.mark.parametrize("abstract", [False, True])
def test_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    """Ready, alive, status and stopping arrive as systemd reads them, each with its status in one line."""
    monkeypatch.chdir(tmp_path)  # the name of a socket has its limit, that of a temporary folder none
    name = f"mdsfs-test-{os.getpid()}" if abstract else "notify"
    with supervisor_at("\0" + name if abstract else name) as sock:
        told = Supervisor("@" + name if abstract else name)
        told.ready("two\nlines")
        told.alive("fine")
        told.status("so")
        told.stopping("over")
        said = [sock.recv(4096) for _ in range(4)]
    assert said == [
        b"READY=1\nSTATUS=two lines",
        b"WATCHDOG=1\nSTATUS=fine",
        b"STATUS=so",
        b"STOPPING=1\nSTATUS=over",
    ]


def test_what_the_environment_says() -> None:
    """Socket and watchdog are read and taken out; a watchdog for another process is not ours."""
    environment = {"NOTIFY_SOCKET": "/run/n", "WATCHDOG_USEC": "6000000", "WATCHDOG_PID": str(os.getpid()), "X": "y"}
    found = Supervisor.take(environment)
    assert (found.address, found.watchdog, found.interval) == ("/run/n", 6.0, 2.0)
    assert environment == {"X": "y"}
    other = Supervisor.take({"NOTIFY_SOCKET": "/run/n", "WATCHDOG_USEC": "6000000", "WATCHDOG_PID": "1"})
    assert (other.watchdog, other.interval) == (None, STATUS_SECONDS)
    assert Supervisor.take({}) == Supervisor(None, None)


def test_nobody_listens(tmp_path: Path) -> None:
    """A supervisor that has gone, or was never there, stops nothing."""
    Supervisor(str(tmp_path / "gone")).ready("here")
    Supervisor().ready("here")


def test_a_probe_says_how_a_read_went(tmp_path: Path) -> None:
    """0 for a read, its errno for a failure; a child that has ended is told from both."""

    async def ask() -> list[int | None]:
        async with probing(str(tmp_path / "file")) as probe:
            found = [await probe.read()]
            (tmp_path / "file").write_text("x")
            found.append(await probe.read())
            probe._process.kill()
            await probe._process.wait()
            return [*found, await probe.read()]

    assert trio.run(ask) == [2, 0, None]
