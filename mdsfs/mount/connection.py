"""One connection to the engine as trio sees it: requests matched with replies, nothing else.

Owns the socket and the numbers of open requests. When the connection ends, for whatever reason, every open and every
later request raises EngineUnavailableError; making a new connection is the link's business.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import trio

from streaming.engine import messages
from streaming.errors import EngineUnavailableError, ProtocolError, ReadTimeoutError, from_wire

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

__all__ = ["Connection", "Reply"]


@dataclass(slots=True)
class Reply:
    """The engine's answer and the descriptors that came with it; whoever takes them out closes them."""

    request: int
    message: dict[str, Any]
    fds: list[int] = field(default_factory=list)

    def take_fds(self) -> list[int]:
        """The descriptors, now the caller's."""
        fds, self.fds = self.fds, []
        return fds

    def close(self) -> None:
        """Close what nobody took."""
        messages.close_fds(self.take_fds())


@dataclass(slots=True)
class _Pending:
    op: str
    answered: trio.Event = field(default_factory=trio.Event)
    reply: Reply | None = None
    abandoned: bool = False


class Connection:
    """A connected socket. `receive_forever` must run in a nursery for requests to be answered."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._pending: dict[int, _Pending] = {}
        self._last = 0
        self._ended: str | None = None
        self._send_lock = trio.Lock()
        self.ended = trio.Event()

    def __repr__(self) -> str:
        return f"Connection({'ended' if self._ended else 'open'}, {len(self._pending)} requests open)"

    @property
    def is_open(self) -> bool:
        return self._ended is None

    async def receive_forever(self) -> None:
        """Match replies with requests until the other side closes; raises nothing but cancellation."""
        reason = "the engine closed the connection"
        try:
            while self._ended is None:
                await trio.lowlevel.wait_readable(self._sock)
                try:
                    packet, fds = messages.receive(self._sock)
                except BlockingIOError:
                    continue
                if not packet:
                    return
                self._dispatch(packet, fds)
        except (OSError, ProtocolError, trio.ClosedResourceError) as error:
            reason = f"the connection to the engine broke: {error}"
        finally:
            self.close(reason)

    async def request(self, op: str, *, patience: float = math.inf, send: Sequence[int] = (), **fields: Any) -> Reply:
        """Send a request, with descriptors, and wait for its answer; an error that the engine answers is raised.

        Raises EngineUnavailableError when the connection ends first and ReadTimeoutError after `patience` seconds. An
        answer that nobody waits for any more is cleaned up: its descriptors are closed, what it holds is released.
        """
        number, pending = self._number(op)
        finished = False
        try:
            with trio.fail_after(patience):
                await self._send({"id": number, "op": op, **fields}, send)
                await pending.answered.wait()
            finished = True
        except trio.TooSlowError:
            raise ReadTimeoutError(f"the engine did not answer {op} within {patience:.0f} s") from None
        finally:
            if not finished:
                self._abandon(number, pending)
        self._pending.pop(number, None)
        reply = pending.reply
        if reply is None:
            raise EngineUnavailableError(self._ended or "the connection to the engine ended")
        if "error" in reply.message:
            reply.close()
            raise from_wire(reply.message["error"])
        return reply

    def done(self, want: int) -> None:
        """End the hold of an answered `want`. One-way: when the socket is full the hold ends a little later."""
        try:
            messages.send(self._sock, messages.encode({"op": "done", "want": want}))
        except BlockingIOError:
            trio.lowlevel.spawn_system_task(self._send_quietly, {"op": "done", "want": want})
        except OSError:
            return  # the connection is gone, and its holds with it

    def tell(self, op: str, **fields: Any) -> None:
        """Say something of which the engine may miss some: lost where the socket is full, or gone."""
        if self._ended is None:
            with contextlib.suppress(OSError):
                messages.send(self._sock, messages.encode({"op": op, **fields}))

    def close(self, reason: str = "the connection was closed") -> None:
        """Wake every waiter with EngineUnavailableError. Idempotent."""
        if self._ended is not None:
            return
        self._ended = reason
        trio.lowlevel.notify_closing(self._sock)
        self._sock.close()
        for pending in self._pending.values():
            pending.answered.set()
        self._pending.clear()
        self.ended.set()

    def _number(self, op: str) -> tuple[int, _Pending]:
        if self._ended is not None:
            raise EngineUnavailableError(self._ended)
        self._last += 1
        pending = self._pending[self._last] = _Pending(op)
        return self._last, pending

    async def _send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        packet = messages.encode(message)
        # The lock keeps waiting senders in order; the packet itself goes out in one call.
        async with self._send_lock:
            while True:
                if self._ended is not None:
                    raise EngineUnavailableError(self._ended)
                try:
                    return messages.send(self._sock, packet, fds)
                except BlockingIOError:
                    with contextlib.suppress(trio.ClosedResourceError):
                        await trio.lowlevel.wait_writable(self._sock)
                except OSError as error:
                    self.close(f"the connection to the engine broke: {error}")

    async def _send_quietly(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(EngineUnavailableError):
            await self._send(message)

    def _dispatch(self, packet: bytes, fds: list[int]) -> None:
        try:
            message = messages.decode(packet)
        except ProtocolError:
            messages.close_fds(fds)
            raise
        number = message.get("id")
        pending = self._pending.get(number) if isinstance(number, int) else None
        if pending is None or not isinstance(number, int):
            messages.close_fds(fds)
            raise ProtocolError(f"the engine answered a request {number!r} that nobody made")
        pending.reply = Reply(number, message, fds)
        pending.answered.set()
        if pending.abandoned:
            del self._pending[number]
            self._discard(pending.op, pending.reply)

    def _abandon(self, number: int, pending: _Pending) -> None:
        if pending.reply is None:
            pending.abandoned = True  # its answer is cleaned up when it comes
        else:
            self._pending.pop(number, None)
            self._discard(pending.op, pending.reply)

    def _discard(self, op: str, reply: Reply) -> None:
        """Clean up an answer that came too late: nobody will use what it brought."""
        reply.close()
        if op == "want" and "error" not in reply.message:
            self.done(reply.request)
