"""Requests and replies over one connection to an engine: thread-safe, and aware of fork.

Any number of threads may have requests open at once. There is no background thread (it would not survive a fork):
whichever waiting thread finds nobody at the socket receives for all. In a forked child the connection is closed; the
child makes its own. Nothing reconnects by itself.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

from streaming.errors import EngineError, EngineUnavailableError, ProtocolError, ReadTimeoutError, from_wire

from . import messages

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["REPLY_TIMEOUT", "Exchange"]

# Nearly everything is answered from memory.
REPLY_TIMEOUT = 30.0


class _Pending:
    """One open request of this process."""

    __slots__ = ("fds", "reply")

    def __init__(self) -> None:
        self.reply: dict[str, Any] | None = None
        self.fds: list[int] = []


_exchanges: weakref.WeakSet[Exchange] = weakref.WeakSet()


def _close_in_child() -> None:
    for exchange in list(_exchanges):
        exchange._forget()


os.register_at_fork(after_in_child=_close_in_child)


class Exchange:
    """One connection."""

    def __init__(self, sock: socket.socket) -> None:
        """Takes over a connected socket."""
        sock.setblocking(False)
        self._sock: socket.socket | None = sock
        self._ids = itertools.count(1)
        self._pending: dict[int, _Pending] = {}
        self._abandoned_wants: set[int] = set()
        self._state = threading.Condition()
        self._receiving = False
        self._sending = threading.Lock()
        _exchanges.add(self)

    def __repr__(self) -> str:
        return f"Exchange({'closed' if self.closed else 'open'}, {len(self._pending)} requests)"

    def __del__(self) -> None:
        # An error on the way may have kept whoever opened it from closing it. Without a shutdown: this may be a fork's
        # child, whose parent goes on talking.
        sock = getattr(self, "_sock", None)
        if sock is not None:
            with contextlib.suppress(OSError):
                os.close(sock.detach())

    @property
    def closed(self) -> bool:
        """Whether the connection is gone: closed, broken, or left behind in the parent of this process."""
        return self._sock is None

    def is_alive(self) -> bool:
        """Whether somebody is still at the other end."""
        sock = self._sock
        if sock is None:
            return False
        poll = select.poll()
        poll.register(sock, 0)  # POLLHUP and POLLERR are always told
        return not poll.poll(0)

    def close(self) -> None:
        """End the connection; open requests fail."""
        with self._state:
            sock, self._sock = self._sock, None
            self._state.notify_all()
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _forget(self) -> None:
        # In a forked child: drop our copy of the socket without a word to the engine, which still talks to the parent.
        # Locks may have been held by threads that do not exist here.
        sock, self._sock = self._sock, None
        if sock is not None:
            os.close(sock.detach())
        self._state = threading.Condition()
        self._sending = threading.Lock()
        self._receiving = False
        self._pending = {}

    def call(
        self,
        message: dict[str, Any],
        timeout: float = REPLY_TIMEOUT,
        *,
        fds: tuple[int, int] = (0, 0),
        send: Sequence[int] = (),
    ) -> tuple[dict[str, Any], list[int]]:
        """A request's reply, and the descriptors that came with it, as many as `fds` allows; they are the caller's.

        `send`: descriptors that go with the request. Raises what the reply says, and EngineUnavailableError,
        ReadTimeoutError or ProtocolError.
        """
        deadline = time.monotonic() + timeout
        number = next(self._ids)
        pending = self._pending[number] = _Pending()
        try:
            self._send({"id": number, **message}, deadline, send)
            self._wait(pending, deadline)
        except BaseException:
            if message["op"] == "want":
                self._abandoned_wants.add(number)
            messages.close_fds(pending.fds)
            raise
        finally:
            self._pending.pop(number, None)
        reply = pending.reply
        assert reply is not None
        if "error" in reply or not fds[0] <= len(pending.fds) <= fds[1]:
            messages.close_fds(pending.fds)
            raise (
                from_wire(reply["error"])
                if "error" in reply
                else ProtocolError("an answer has other descriptors than expected")
            )
        return reply, pending.fds

    def tell(self, message: dict[str, Any]) -> None:
        """Send what has no reply. A connection that is gone loses it."""
        with contextlib.suppress(EngineUnavailableError):
            self._send(message, time.monotonic() + REPLY_TIMEOUT)

    def tell_at_once(self, message: dict[str, Any]) -> bool:
        """The same without ever waiting; False where it could not be sent."""
        sock = self._sock
        if sock is None or not self._sending.acquire(blocking=False):
            return False
        try:
            messages.send(sock, messages.encode(message), flags=socket.MSG_DONTWAIT)
        except OSError:  # full, or gone: the next one says more
            return False
        finally:
            self._sending.release()
        return True

    def _send(self, message: dict[str, Any], deadline: float, fds: Sequence[int] = ()) -> None:
        packet = messages.encode(message)
        with self._sending:
            while True:
                sock = self._live()
                try:
                    return messages.send(sock, packet, fds, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    self._poll(sock, select.POLLOUT, deadline)
                except OSError as error:
                    raise self._broken(error) from error

    def _wait(self, pending: _Pending, deadline: float) -> None:
        while True:
            with self._state:
                while self._receiving and pending.reply is None:
                    if not self._state.wait(max(0.0, deadline - time.monotonic())):
                        raise ReadTimeoutError("the engine does not answer in time")
                if pending.reply is not None:
                    return
                self._receiving = True
            try:
                self._receive_one(deadline)
            finally:
                with self._state:
                    self._receiving = False
                    self._state.notify_all()

    def _receive_one(self, deadline: float) -> None:
        sock = self._live()
        self._poll(sock, select.POLLIN, deadline)
        try:
            packet, fds = messages.receive(sock, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            raise self._broken(error) from error
        if not packet:
            raise self._broken(None)
        self._dispatch(messages.decode(packet), fds)

    def _dispatch(self, reply: dict[str, Any], fds: list[int]) -> None:
        number = reply.get("id")
        pending = self._pending.get(number) if isinstance(number, int) else None
        if pending is not None:
            pending.fds, pending.reply = fds, reply
            return
        messages.close_fds(fds)
        if number in self._abandoned_wants:
            # Its caller has given up; what the engine holds for it must not stay held.
            self._abandoned_wants.discard(number)
            if "error" not in reply:
                self.tell({"op": "done", "want": number})

    def _poll(self, sock: socket.socket, event: int, deadline: float) -> None:
        poll = select.poll()
        try:
            poll.register(sock, event)
        except (OSError, ValueError) as error:  # closed by another thread meanwhile
            raise EngineUnavailableError("the connection to the engine is closed") from error
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise ReadTimeoutError("the engine does not answer in time")

    def _live(self) -> socket.socket:
        if self._sock is None:
            raise EngineUnavailableError("the connection to the engine is closed")
        return self._sock

    def _broken(self, error: OSError | None) -> EngineError:
        self.close()
        return EngineUnavailableError(f"the engine is gone: {error.strerror if error else 'it closed the connection'}")
