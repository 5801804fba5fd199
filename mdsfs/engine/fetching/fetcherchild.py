"""One fetcher as the engine sees it: a child process and the socket to it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import trio

from streaming.engine import messages

from ..child import environment
from .wire import MOST_FDS, pack

if TYPE_CHECKING:
    from .ticket import Ticket

__all__ = ["NOTHING", "FetcherChild", "Totals"]

Totals = tuple[int, int, int, int]  # requests, bytes, errors, retries
NOTHING: Totals = (0, 0, 0, 0)


class FetcherChild:
    """One child process and the socket to it."""

    def __init__(self, process: subprocess.Popen[bytes], sock: socket.socket) -> None:
        self.process = process
        self.sock = sock
        self.running: dict[int, Ticket] = {}
        self.busy = [0, 0, 0]
        """Jobs that it has, by kind."""
        self.totals: Totals = NOTHING
        self.worked = False
        self._sending = trio.Lock()

    @classmethod
    def start(cls, threads: int, part_size: int) -> FetcherChild:
        """Start one. From the thread that runs the loop: the child dies with the thread that made it."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "mdsfs.engine.fetching.fetcher", "--fd", str(theirs.fileno())]
        with theirs:
            process = subprocess.Popen(
                [*command, "--parent", str(os.getpid()), "--threads", str(threads), "--part-size", str(part_size)],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=environment(),
            )
        ours.setblocking(False)
        return cls(process, ours)

    def stop(self) -> None:
        """Kill it: what it was writing is accounted for by whoever gave it the job."""
        self.process.kill()
        self.process.wait()
        trio.lowlevel.notify_closing(self.sock)  # who waits to send would wait for ever
        self.sock.close()

    async def start_job(self, ticket: Ticket) -> None:
        """Hand over a job and its descriptor. A fetcher that is dead already says so through `ended`."""
        ticket.sent = await self.send(ticket.message(), ticket.fds)

    async def send(self, message: dict[str, Any], fds: list[int] | None = None) -> bool:
        """Send a message; False when nobody is there any more."""
        packet, more = pack(message)
        try:
            async with self._sending:  # many small jobs fill the socket, and only one task may wait for room in it
                while True:
                    try:
                        messages.send(self.sock, packet, [*(fds or ()), *more], most=MOST_FDS)
                        return True
                    except BlockingIOError:
                        await trio.lowlevel.wait_writable(self.sock)
        except (OSError, trio.ClosedResourceError):  # it died, which the listener hears as well
            return False
        finally:
            messages.close_fds(more)
