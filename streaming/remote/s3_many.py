"""Owns the reading of many small ranges from S3 beside each other, by the calling thread alone, over many connections.

Only what is as it should be is read here: an answer that carries exactly the range, of the version that was asked for.
Whatever else happens (a refusal, a redirect, a break, silence) ends the attempt at that range, and nothing more: the
caller reads it again by itself, where retries, renewed credentials and named errors are. That keeps a request at a
third of what `S3RangeReader` costs.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import select
import socket
import ssl
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from streaming.errors import StreamingError
from streaming.remote.connections import wake

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from streaming.remote.interface import SmallRange
    from streaming.remote.s3 import S3Remote
    from streaming.remote.s3_session import S3Session

__all__ = ["ManyRanges"]

# Connections that one call has at the same time: with several callers enough for thousands of requests a second at a
# tenth of a second each.
WIDTH = 64
# When nothing has come on any connection for so long, what is left is for somebody who can wait.
PATIENCE = 5.0
# An answer's headers take some hundred bytes.
_HEAD = 4096
_RANGE = re.compile(rb"bytes (\d+)-(\d+)/(\d+)")
_READY, _BROKEN = select.POLLIN, select.POLLERR | select.POLLHUP | select.POLLNVAL
_NOT_YET = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class _Broken(Exception):
    """This connection, or its answer, is not what it should be."""


class _Line:
    """One connection and the range that it brings."""

    __slots__ = (
        "buffer",
        "connecting",
        "connection",
        "established",
        "fd",
        "got",
        "number",
        "reused",
        "since",
        "start",
        "stays",
        "view",
    )

    def __init__(self, connection: http.client.HTTPConnection, *, reused: bool, connecting: bool = False) -> None:
        self.connection = connection
        self.reused, self.connecting = reused, connecting
        self.fd = self.sock.fileno()  # a socket that TLS has taken over, or that has failed, does not know it any more
        self.established = not connecting
        """Only TLS has to agree, if it is spoken."""
        self.number = -1
        self.since = 0.0
        self.got = self.start = 0
        self.stays = True

    @property
    def sock(self) -> socket.socket:
        sock = self.connection.sock
        assert isinstance(sock, socket.socket)
        return sock

    def ask(self, number: int, request: bytes, length: int) -> None:
        """Send a request; its answer's body has this length."""
        self.number = number
        self.buffer = bytearray(length + _HEAD)
        self.view = memoryview(self.buffer)
        self.got = self.start = 0
        self.since = time.monotonic()
        if self.sock.send(request) != len(request):
            raise _Broken

    def receive(self, wanted: SmallRange) -> memoryview | None:
        """What has come; the body when it is whole."""
        need = wanted.stop - wanted.start
        while not self.start or self.got < self.start + need:
            end = self.start + need if self.start else len(self.buffer)
            try:
                count = self.sock.recv_into(self.view[self.got : end])
            except _NOT_YET:
                return None
            if not count:
                raise _Broken
            self.got += count
            if not self.start:
                self._look(wanted)
        if self.got != self.start + need:
            raise _Broken  # more than was asked for
        return self.view[self.start : self.got]

    def _look(self, wanted: SmallRange) -> None:
        at = self.buffer.find(b"\r\n\r\n", 0, min(self.got, _HEAD))
        if at < 0:
            if self.got >= _HEAD:
                raise _Broken
            return
        self.stays = _check(bytes(self.view[:at]), wanted)
        self.start = at + 4


def _check(head: bytes, wanted: SmallRange) -> bool:
    """Whether the connection stays open; raise unless the answer is the range that was asked for, of that version."""
    lines = head.split(b"\r\n")
    if not lines[0].startswith((b"HTTP/1.1 206", b"HTTP/1.1 200")):  # some servers say 200 with a Content-Range
        raise _Broken
    length = said = etag = None
    stays = True
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        match name.lower():
            case b"content-length":
                length = value.strip()
            case b"content-range":
                said = value.strip()
            case b"etag":
                etag = value.strip()
            case b"transfer-encoding":
                raise _Broken
            case b"connection":
                stays = value.strip().lower() != b"close"
            case _:
                pass
    found = _RANGE.fullmatch(said or b"")
    if length != b"%d" % (wanted.stop - wanted.start) or found is None:
        raise _Broken
    if int(found[1]) != wanted.start or int(found[2]) != wanted.stop - 1:
        raise _Broken
    if (wanted.size is not None and int(found[3]) != wanted.size) or etag != wanted.etag.encode("latin-1"):
        raise _Broken
    return stays


class ManyRanges:
    """One call of `S3Remote.read_many`; `cancel` from another thread ends it."""

    def __init__(
        self,
        remote: S3Remote,
        wanted: Sequence[SmallRange],
        keys: Sequence[str],
        taken: Callable[[int, memoryview], None],
    ) -> None:
        self._remote, self._wanted, self._keys, self._taken = remote, wanted, keys, taken
        self._waiting = deque(range(len(wanted)))
        self._lines: dict[int, _Line] = {}
        self._lock = threading.Lock()
        self._cancelled = False
        self._again: set[int] = set()
        self._where: tuple[int, Any] = (0, None)
        """Address family and address of the endpoint: of the last connection that was established."""
        self._poll = select.poll()
        self._asked = self._received = 0
        self.quickest = float("inf")
        """Seconds from the request to the last byte of the range that took least."""

    def run(self) -> None:
        """Read what can be read; `taken` hears of each range that came."""
        try:
            self._run(self._remote.session())
        except (StreamingError, OSError, http.client.HTTPException):
            return  # no session or no connection: who reads the ranges by themselves will say why
        finally:
            self._remote.counters.add("requests", self._asked)
            self._remote.counters.add("bytes", self._received)
            for line in list(self._lines.values()):
                self._hang_up(line)

    def cancel(self) -> None:
        """Nobody wants the rest."""
        with self._lock:
            self._cancelled = True
            for line in self._lines.values():
                wake(line.sock)

    def _run(self, session: S3Session) -> None:
        self._connect(session)
        while self._lines and not self._cancelled:
            events = self._poll.poll(PATIENCE * 1000)
            if not events:
                return
            for fd, event in events:
                line = self._lines.get(fd)
                if line is None:
                    continue
                try:
                    if line.connecting:
                        self._connected(session, line)
                    elif event & (_READY | _BROKEN):
                        self._go_on(session, line)
                except (_Broken, OSError, http.client.HTTPException):
                    self._lost(session, line)

    def _connect(self, session: S3Session) -> None:
        """Open as many connections as there are ranges waiting: kept ones, and new ones without waiting for them."""
        pool, timeout = session.pool, self._remote.options.connect_timeout
        for _ in range(min(WIDTH - len(self._lines), len(self._waiting))):
            if (kept := pool.take_kept()) is not None:
                self._begin(session, _Line(kept, reused=True))
            elif not self._lines:
                self._begin(session, _Line(pool.connect(timeout), reused=False))
            elif (made := pool.begin(*self._where)) is not None:
                self._begin(session, _Line(made, reused=False, connecting=True))
            else:
                return

    def _begin(self, session: S3Session, line: _Line) -> None:
        line.sock.setblocking(False)
        with self._lock:
            self._lines[line.fd] = line
        self._poll.register(line.fd, select.POLLOUT if line.connecting else select.POLLIN)
        if not line.connecting:
            try:
                self._where = line.sock.family, line.sock.getpeername()
                self._next(session, line)
            except (_Broken, OSError, http.client.HTTPException):
                self._lost(session, line)

    def _connected(self, session: S3Session, line: _Line) -> None:
        if not line.established:
            if error := line.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(error, "connect")
            with self._lock:  # the descriptor stays, the socket is another one
                session.pool.secure(line.connection)
            line.established = True
        sock = line.sock
        if isinstance(sock, ssl.SSLSocket):
            try:
                sock.do_handshake()
            except ssl.SSLWantReadError:
                self._poll.modify(line.fd, select.POLLIN)
                return
            except ssl.SSLWantWriteError:
                self._poll.modify(line.fd, select.POLLOUT)
                return
        line.connecting = False
        self._poll.modify(line.fd, select.POLLIN)
        self._next(session, line)

    def _go_on(self, session: S3Session, line: _Line) -> None:
        body = line.receive(self._wanted[line.number])
        if body is None:
            return
        number, line.number, line.reused = line.number, -1, True
        self._received += len(body)
        self.quickest = min(self.quickest, time.monotonic() - line.since)
        self._taken(number, body)
        if line.stays:
            self._next(session, line)
        else:
            self._hang_up(line)
            self._connect(session)

    def _next(self, session: S3Session, line: _Line) -> None:
        """The next range for a connection, or none: it is kept for others."""
        if not self._waiting:
            self._forget(line)
            line.sock.settimeout(self._remote.options.read_timeout)
            session.pool.give(line.connection)
            return
        number = self._waiting.popleft()
        wanted = self._wanted[number]
        self._asked += 1
        request = session.get_request(self._keys[number], wanted.start, wanted.stop, wanted.etag)
        line.ask(number, request, wanted.stop - wanted.start)

    def _lost(self, session: S3Session, line: _Line) -> None:
        number = line.number
        again = line.reused and not line.got and number not in self._again
        self._hang_up(line)
        if number >= 0 and again:  # the server closed a kept connection as we took it: that says nothing about it
            self._again.add(number)
            self._waiting.appendleft(number)
        if not self._lines and self._waiting and not self._cancelled and (again or number < 0):
            self._connect(session)

    def _forget(self, line: _Line) -> None:
        with self._lock:
            if self._lines.pop(line.fd, None) is not None:
                self._poll.unregister(line.fd)

    def _hang_up(self, line: _Line) -> None:
        self._forget(line)
        with contextlib.suppress(OSError):
            line.connection.close()
