"""One client's socket: packets in, packets out, and never a wait for a client that does not read.

What can't be sent at once is queued; the queue is bounded, and a client that lets it fill is disconnected: it has
stopped reading while it goes on asking.
"""

from __future__ import annotations

import contextlib
import socket
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trio

from streaming.engine import messages
from streaming.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Connection", "PeerGone"]

MAX_QUEUED = 1024
# After so many packets of one client the others have a turn.
TURN = 32


class PeerGone(Exception):
    """The client has disconnected, or was."""


@dataclass(frozen=True, slots=True)
class _Outgoing:
    packet: bytes
    fds: Sequence[int]
    after: Callable[[], None] | None

    def finish(self) -> None:
        if self.after is not None:
            self.after()


class Connection:
    """A connected, non-blocking socket."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._queue: deque[_Outgoing] = deque()
        self._queued = trio.Event()
        self._received = 0
        self._fds: list[int] = []
        self.is_open = True

    def __repr__(self) -> str:
        return f"Connection({'open' if self.is_open else 'closed'}, {len(self._queue)} packets queued)"

    def send(self, message: dict[str, Any], fds: Sequence[int] = (), after: Callable[[], None] | None = None) -> None:
        """Send now or later, in order. `after` is called once, when the descriptors are not needed any more."""
        outgoing = _Outgoing(messages.encode(message), fds, after)
        if not self.is_open or len(self._queue) >= MAX_QUEUED:
            outgoing.finish()
            self.shut()
            return
        self._queue.append(outgoing)
        if len(self._queue) == 1:
            self._send_queued()
        if self._queue:
            self._queued.set()

    def _send_queued(self) -> None:
        while self._queue and self.is_open:
            first = self._queue[0]
            try:
                messages.send(self._sock, first.packet, first.fds)
            except BlockingIOError:
                return
            except OSError:
                self.shut()
                return
            self._queue.popleft().finish()

    async def send_forever(self) -> None:
        """Send what had to be queued; ends with the task that runs it."""
        while True:
            await self._queued.wait()
            await trio.lowlevel.wait_writable(self._sock)
            self._send_queued()
            if not self._queue:
                self._queued = trio.Event()

    async def receive(self) -> dict[str, Any]:
        """The next message. Raises PeerGone at the end, and for a packet that can't be read, which ends it.

        The caller ends it with `close_received`: a client may not make the engine keep descriptors.
        """
        self._received += 1
        if self._received % TURN == 0:
            await trio.lowlevel.checkpoint()
        while True:
            try:
                packet, fds = messages.receive(self._sock)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock)
                continue
            except (OSError, ProtocolError) as error:
                raise PeerGone from error
            self._fds = fds
            try:
                if packet:
                    return messages.decode(packet)
            except ProtocolError as error:
                self.close_received()
                raise PeerGone from error
            self.close_received()
            raise PeerGone

    def received_fd(self) -> int:
        """The descriptor beside the last message; it is closed with the others. Raises ProtocolError for none."""
        if len(self._fds) != 1:
            raise ProtocolError(f"{len(self._fds)} descriptors beside a message, expected 1")
        return self._fds[0]

    def close_received(self) -> None:
        """Close what came with the last message."""
        messages.close_fds(self._fds)
        self._fds = []

    def shut(self) -> None:
        """End the connection from this side: `receive` raises, what is queued is dropped."""
        if self.is_open:
            self.is_open = False
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
        while self._queue:
            self._queue.popleft().finish()

    def close(self) -> None:
        """Close the socket; the tasks that use it must have ended."""
        self.shut()
        self._sock.close()
