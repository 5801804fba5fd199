"""Owns the reading of one range from S3: one request after another until every byte of one version has arrived.

Nothing an answer claims is taken on trust: its ETag, range, total and length are compared with what was asked for and
with the answers before it, so that a break in mid-body can be resumed and bytes of two versions never mix.
"""

from __future__ import annotations

import http.client
import io
import os
import select
import socket
import ssl
import threading
from typing import TYPE_CHECKING

from streaming.errors import (
    CredentialsRefusedError,
    EndpointUnreachableError,
    ObjectChangedError,
    ReadTimeoutError,
    RemoteError,
)
from streaming.remote.connections import ConnectFailedError, wake
from streaming.remote.interface import RangeReader
from streaming.remote.retrying import Attempts
from streaming.remote.s3_answers import (
    Place,
    Refusal,
    error_of,
    parse_content_range,
    parse_http_date,
    read_refusal,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from streaming.remote.s3 import S3Remote
    from streaming.remote.s3_session import S3Session

_ERROR_BODY = 1 << 16
_SKIP_PIECE = 1 << 18
# whoever splices is not woken before all that it wants has come, or this many seconds are over
_GATHER = 0.1
# a connection that broke after this much more was worth having: its failures are forgotten
_PROGRESS = 1 << 16


class BrokenAnswerError(RemoteError):
    """An answer that contradicts itself or the request; the next one may be right."""


class S3RangeReader(RangeReader):
    """See `RangeReader`; the object's key here is the full one, inside the bucket."""

    def __init__(
        self,
        remote: S3Remote,
        key: str,
        span: tuple[int, int | None],
        *,
        expected: tuple[str | None, int | None],
        deadline: float | None,
        method: str = "GET",
    ) -> None:
        self._remote, self._key, self._method = remote, key, method
        self._at, self._stop = span
        self._etag, self._size = expected
        self._deadline = deadline
        self._mtime_ns = 0
        self._answered = False
        self._failures = 0
        self._since_failure = 0
        self._renewed = self._moved = self._at_end = False
        self._session: S3Session | None = None
        self._connection: http.client.HTTPConnection | None = None
        # kept apart: http.client lets go of it as soon as an answer says that the connection will close
        self._sock: socket.socket | None = None
        self._answer: http.client.HTTPResponse | None = None
        self._left = 0  # of the body now open
        self._low = 1  # bytes that wake who waits for the socket
        self._unbuffered = False  # whether nothing of it is in the buffer that its headers were read into
        self._broke: Exception | None = None
        self._cancelled = threading.Event()
        self._closed = False

    # ---- what the store says ----------------------------------------------------------------------------------------

    @property
    def etag(self) -> str | None:
        self._ask()
        return self._etag

    @property
    def size(self) -> int:
        self._ask()
        return self._size or 0

    @property
    def mtime_ns(self) -> int:
        self._ask()
        return self._mtime_ns

    def _ask(self) -> None:
        if not self._answered:
            self._open(self._attempts())

    # ---- bytes ------------------------------------------------------------------------------------------------------

    def readinto(self, buffer: memoryview) -> int:
        return self._take(len(buffer), lambda at, wanted: self._read_some(buffer[at : at + wanted]), until_full=True)

    def splice(self, pipe: int, most: int) -> int | None:
        session = self._session or self._remote.session()
        if session.endpoint.startswith("https:") or (self._answer is not None and self._answer.chunked):
            return None
        return self._take(most, lambda _, wanted: self._splice_some(pipe, wanted), until_full=False)

    def _take(self, most: int, take: Callable[[int, int], int], *, until_full: bool) -> int:
        """Bytes of the range by `take(at, wanted)`, which gives how many it took; 0 at the end of the range."""
        wanted = most if self._stop is None else min(most, self._stop - self._at)
        if wanted <= 0 and self._stop is not None:
            return 0
        attempts = self._attempts()
        if self._broke is not None:
            broke, self._broke = self._broke, None
            self._spend(attempts, broke)
        while True:
            if self._answer is None:
                self._open(attempts)
                if self._stop is not None and self._at >= self._stop:
                    return 0
            wanted = min(most, (self._stop or 0) - self._at)
            count = self._receive(wanted, take, attempts, until_full=until_full)
            if count or not wanted:
                return count

    def _receive(self, wanted: int, take: Callable[[int, int], int], attempts: Attempts, *, until_full: bool) -> int:
        """Bytes of the open answer; 0 when it broke before any came and may be asked for again."""
        got = 0
        try:
            while got < wanted and self._left:
                self._set_timeout(attempts)
                count = take(got, min(wanted - got, self._left))
                if count == 0:
                    raise BrokenAnswerError(f"{self._place}: the body ended {self._left} bytes early")
                self._left -= count
                got += count
                if not until_full:
                    break
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._drop()
            self._advance(got)
            if got:
                self._broke = error  # these bytes are right: they go out first
            else:
                self._spend(attempts, error)
            return got
        self._advance(got)
        if self._left == 0 or self._at == self._stop:
            self._finish()
        return got

    def _read_some(self, view: memoryview) -> int:
        answer = self._answer
        assert answer is not None
        self._wake_at(1)
        if answer.chunked:
            return answer.readinto(view)
        # one receive, straight into the caller's memory once the headers' buffer is empty
        count: int = answer.fp.readinto1(view)
        # what is larger than that buffer empties it, or goes past it; what is smaller fills it
        self._unbuffered = len(view) > io.DEFAULT_BUFFER_SIZE
        return count

    def _splice_some(self, pipe: int, wanted: int) -> int:
        answer = self._answer
        assert answer is not None
        if not self._unbuffered or answer.chunked:  # what came with the headers is in this process's memory already
            head = memoryview(bytearray(min(wanted, 2 * io.DEFAULT_BUFFER_SIZE)))
            return os.write(pipe, head[: self._read_some(head)])
        sock = self._sock
        assert sock is not None
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        while True:
            self._wake_at(wanted)
            if not poll.poll(1000 * _GATHER):
                self._wake_at(1)
                if not poll.poll(1000 * (sock.gettimeout() or 0)):
                    raise TimeoutError("the server was silent")
            try:
                return os.splice(sock.fileno(), pipe, wanted)
            except BlockingIOError:
                continue

    def _wake_at(self, count: int) -> None:
        """Have whoever waits for the socket sleep until so many bytes have come: each waking costs CPU time."""
        if count != self._low and self._sock is not None:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)
            self._low = count

    def _advance(self, count: int) -> None:
        self._at += count
        self._remote.counters.add("bytes", count)
        self._since_failure += count
        if self._since_failure >= _PROGRESS:
            self._failures = 0

    # ---- requests ---------------------------------------------------------------------------------------------------

    def _open(self, attempts: Attempts) -> None:
        """Ask until an answer with the right bytes at its front is open (or the range turns out to be empty)."""
        while True:
            session = self._session = self._remote.session()
            self._check(attempts)  # after the session: the first one takes a while to make
            reused = False
            try:
                self._connection, reused = session.pool.take(
                    max(0.001, min(self._remote.options.connect_timeout, attempts.remaining()))
                )
                self._send(session, attempts)
                refusal = self._accept(attempts)
            except (BrokenAnswerError, OSError, http.client.HTTPException, ValueError) as error:
                self._drop()
                if isinstance(error, ObjectChangedError):
                    self._fail(error)
                if reused and isinstance(error, (ConnectionError, http.client.BadStatusLine)):
                    continue  # the server closed a kept connection as we took it: that says nothing about it
                self._spend(attempts, error)
                continue
            if refusal is None:
                self._answered = True
                return
            self._refused(refusal, attempts)

    def _send(self, session: S3Session, attempts: Attempts) -> None:
        connection = self._connection
        assert connection is not None
        self._sock, self._low = connection.sock, 1
        headers = {"Accept-Encoding": "identity"}
        if self._first or self._stop:
            headers["Range"] = f"bytes={self._first}-{'' if self._stop is None else self._stop - 1}"
        if self._etag and not self._etag.startswith("W/"):  # weak ones never match by the rules
            headers["If-Match"] = self._etag
        target, headers = session.prepare(self._method, self._key, headers)
        self._set_timeout(attempts)
        self._remote.counters.add("requests")
        connection.request(self._method, target, headers=headers)
        self._answer, self._unbuffered = connection.getresponse(), False

    @property
    def _first(self) -> int:
        """The first byte to ask for. No request can name an empty range: the byte before it stands in for it."""
        return self._at - 1 if self._at and (self._at == self._stop or self._at_end) else self._at

    def _accept(self, attempts: Attempts) -> Refusal | None:
        answer = self._answer
        assert answer is not None
        if answer.status not in (200, 206):
            body = answer.read(_ERROR_BODY) if self._method != "HEAD" else b""
            refusal = read_refusal(answer.status, answer.headers, body)
            self._left = 0 if answer.isclosed() else 1
            self._finish()
            return refusal
        start, stop, total = self._span_of(answer)
        self._pin(answer, total)
        self._left = stop - start
        if self._method == "HEAD":
            self._left = 0
            self._finish()
            return None
        self._skip(self._at - start, attempts)
        if self._left == 0:
            self._finish()
        return None

    def _span_of(self, answer: http.client.HTTPResponse) -> tuple[int, int, int]:
        """(start, stop, total) of the body; a 200 without Content-Range is the whole object, whatever was asked for."""
        length = answer.getheader("Content-Length")
        body = int(length) if length and length.isdigit() else None
        said = answer.getheader("Content-Range")
        if said is None and answer.status == 200:
            if body is None:
                raise BrokenAnswerError(f"{self._place}: an answer without Content-Length can't be checked")
            return 0, body, body
        found = parse_content_range(said or "")
        if found is None or found[2] is None or (body is not None and body != found[1] - found[0]):
            raise BrokenAnswerError(f"{self._place}: Content-Range {said!r} does not fit Content-Length {length}")
        start, stop, total = found[0], found[1], found[2]
        if start > self._first or stop <= self._first or stop > total:
            raise BrokenAnswerError(f"{self._place}: asked for bytes from {self._first}, answered {said!r}")
        return start, stop, total

    def _pin(self, answer: http.client.HTTPResponse, total: int) -> None:
        etag = answer.getheader("ETag")
        again = "open the dataset again to read the new version"
        # the comparison is ours: some servers ignore If-Match
        if self._etag is not None and etag != self._etag:
            raise ObjectChangedError(f"{self._place}: the object was replaced since it was first read; {again}")
        if self._size is not None and total != self._size:
            raise ObjectChangedError(f"{self._place}: {total} bytes, expected {self._size}; {again}")
        if total < (needed := self._at if self._stop is None else self._stop):
            raise ObjectChangedError(f"{self._place}: {total} bytes, but {needed} are needed; upload it again")
        self._etag, self._size = etag, total
        self._mtime_ns = parse_http_date(answer.getheader("Last-Modified"))
        if self._stop is None:
            self._stop = total

    def _skip(self, count: int, attempts: Attempts) -> None:
        scratch = memoryview(bytearray(min(count, _SKIP_PIECE)))
        while count:
            self._set_timeout(attempts)
            got = self._read_some(scratch[: min(count, len(scratch))])
            if got == 0:
                raise BrokenAnswerError(f"{self._place}: the body ended before the range began")
            count -= got
            self._left -= got
            self._remote.counters.add("bytes", got)

    # ---- failures ---------------------------------------------------------------------------------------------------

    def _refused(self, refusal: Refusal, attempts: Attempts) -> None:
        session = self._session
        assert session is not None
        if refusal.region and refusal.region != session.region and not self._moved:
            self._moved = True
            self._remote.renew(session, region=refusal.region)
        elif refusal.stale_credentials and not self._renewed and self._remote.renew(session):
            self._renewed = True
        elif refusal.passing:
            self._spend(attempts, error_of(refusal, self._place), refusal.retry_after)
        elif refusal.status == 416 and self._stop is None and self._at and not self._at_end:
            self._at_end = True  # the object ends at the position, or before it: its last byte tells
        elif refusal.status == 416:
            needed = self._at if self._stop is None else self._stop
            self._fail(ObjectChangedError(f"{self._place}: shorter than the {needed} bytes needed; upload it again"))
        else:
            self._fail(error_of(refusal, self._place))

    def _spend(self, attempts: Attempts, error: Exception, asked: float | None = None) -> None:
        """Pause before the next attempt, or raise what the last one met."""
        self._check(attempts, error)
        if _is_permanent(error):
            self._fail(self._named(error), error)
        self._failed()
        pause = attempts.spend(asked)
        if pause is None:
            self._fail(self._named(error), error)
        self._remote.counters.add("retries")
        assert pause is not None
        self._cancelled.wait(pause)

    def _failed(self) -> None:
        self._failures += 1
        self._since_failure = 0

    def _check(self, attempts: Attempts, cause: Exception | None = None) -> None:
        if self._closed:
            raise ValueError("the reader is closed")
        if self._cancelled.is_set():
            self._drop()
            raise RemoteError(f"{self._place}: reading was cancelled") from cause
        if attempts.remaining() <= 0:
            self._drop()
            self._fail(ReadTimeoutError(f"{self._place}: not read before its deadline; the server is slow"), cause)

    def _fail(self, error: RemoteError, cause: Exception | None = None) -> None:
        self._remote.counters.add("errors")
        raise error from (cause if cause is not error else None)

    def _named(self, error: Exception) -> RemoteError:
        if isinstance(error, BrokenAnswerError):
            return RemoteError(f"{error}, again and again; check the server, or a proxy before it")
        if isinstance(error, RemoteError):
            return error
        if isinstance(error, ConnectFailedError):
            return EndpointUnreachableError(
                f"{self._place}: no connection ({error}); check the endpoint's address, the network and its proxy"
            )
        if isinstance(error, TimeoutError):
            return ReadTimeoutError(f"{self._place}: the server was silent for too long; try again later")
        return EndpointUnreachableError(
            f"{self._place}: the connection kept breaking ({error or type(error).__name__}); check the network"
        )

    # ---- the connection ---------------------------------------------------------------------------------------------

    @property
    def _place(self) -> Place:
        session = self._session
        endpoint = session.endpoint if session else self._remote.options.endpoint_url or "amazonaws.com"
        return Place(endpoint, self._remote.bucket, self._key, bool(session and session.anonymous))

    def _attempts(self) -> Attempts:
        options = self._remote.options
        return Attempts(
            options.attempts,
            options.total_timeout,
            self._deadline,
            self._failures,
            first_pause=options.retry_pause,
        )

    def _set_timeout(self, attempts: Attempts) -> None:
        sock = self._sock
        if sock is None:
            return
        left = attempts.remaining()
        timeout = self._remote.options.read_timeout
        if left <= 0:
            raise TimeoutError("past its deadline")
        timeout = min(timeout, left)
        if sock.gettimeout() != timeout:
            sock.settimeout(timeout)
        if self._cancelled.is_set():
            raise ConnectionAbortedError("cancelled")

    def _finish(self) -> None:
        """The answer was read as far as we want it: keep the connection if nothing of it is left."""
        answer, connection, session = self._answer, self._connection, self._session
        if answer is None or connection is None or session is None or self._left or answer.chunked or answer.will_close:
            self._drop()
            return
        answer.close()
        self._wake_at(1)
        self._answer = self._connection = self._sock = None
        session.pool.give(connection)

    def _drop(self) -> None:
        if self._answer is not None:
            self._answer.close()
        if self._connection is not None:
            self._connection.close()
        self._answer = self._connection = self._sock = None
        self._left = 0

    def cancel(self) -> None:
        self._cancelled.set()
        sock = self._sock
        if sock is not None:
            wake(sock)

    def close(self) -> None:
        self._closed = True
        self._drop()


def _is_permanent(error: Exception) -> bool:
    """No pause will help: an unknown name, a certificate that does not fit, credentials that can't be had."""
    cause = error.__cause__ if isinstance(error, ConnectFailedError) else error
    if isinstance(cause, socket.gaierror):
        return cause.errno != socket.EAI_AGAIN
    return isinstance(cause, (ssl.SSLCertVerificationError, CredentialsRefusedError))
