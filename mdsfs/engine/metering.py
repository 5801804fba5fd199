"""The engine's side of the metrics server: listens, starts the child that answers, and gives it status documents.

The child does everything that HTTP asks for. What the engine does is one status document per question, and no more than
one question is open at a time.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import trio

from streaming.engine import messages
from streaming.errors import EngineUnavailableError

from .child import plain_environment

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["listen", "serve_metrics", "url_of"]

log = logging.getLogger(__name__)

BACKLOG = 64
# A child that dies is started again after 0.1 s, 0.2 s … up to this.
LONGEST_PAUSE = 30.0


def listen(address: str) -> socket.socket:
    """A listening TCP socket at `HOST:PORT`; port 0 is one that is free. Raises EngineUnavailableError."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, int(port)))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise EngineUnavailableError(
            f"--metrics: cannot listen on {host} port {port} ({error.strerror}): choose another, or 0 for a free one"
        ) from error
    return sock


def url_of(listener: socket.socket) -> str:
    """Where a browser finds the page."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


async def serve_metrics(engine: Engine, listener: socket.socket) -> None:
    """Keep the child running and answer it until cancelled."""
    log.info("metrics at %s", url_of(listener))
    pause = 0.0
    while True:
        ours, process = _start(listener)
        try:
            if await _answer(engine, ours):
                pause = 0.0
        finally:
            process.kill()
            process.wait()
            ours.close()
        pause = min(LONGEST_PAUSE, max(0.1, 2 * pause))
        log.warning(
            "the metrics server pid=%d died: starting another in %.1f s",
            process.pid,
            pause,
            extra={"event": "metrics-died"},
        )
        await trio.sleep(pause)


def _start(listener: socket.socket) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    # From the thread that runs the loop: the child dies with the thread that made it.
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "mdsfs.metrics.server", "--parent", str(os.getpid())]
    with theirs:
        process = subprocess.Popen(
            [*command, "--listen-fd", str(listener.fileno()), "--engine-fd", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=(listener.fileno(), theirs.fileno()),
            env=plain_environment(),
        )
    ours.setblocking(False)
    return ours, process


async def _answer(engine: Engine, sock: socket.socket) -> bool:
    """Answer until the child is gone; whether it asked at all."""
    asked = False
    while True:
        await trio.lowlevel.wait_readable(sock)
        try:
            packet, fds = messages.receive(sock)
        except ConnectionError:
            return asked
        messages.close_fds(fds)
        if not packet:
            return asked
        asked = True
        fd = os.memfd_create("mdsfs-metrics", os.MFD_CLOEXEC)
        try:
            os.write(fd, await engine.status_document(brief=True))
            messages.send(sock, packet, [fd])
        except OSError:
            return asked  # it died while we wrote
        finally:
            os.close(fd)
