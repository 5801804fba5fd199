"""Owns the HTTP connections to one endpoint: opened on demand, kept alive, handed to one reader at a time.

Plain `http.client`: a reader has to own its socket, to receive into a caller's buffer, to keep a deadline exactly and
to be cancelled by another thread. boto3's own path costs about 1 ms of CPU a request besides.
"""

from __future__ import annotations

import base64
import http.client
import select
import socket
import threading
import urllib.request
import weakref
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, unquote, urlsplit

if TYPE_CHECKING:
    import ssl

# what is idle beyond this many is closed; as many requests may be made at once without connecting anew
_KEPT = 512


class ConnectFailedError(OSError):
    """No connection came about; the cause says why."""


class ConnectionPool:
    """Connections to one scheme, host and port; safe to use from many threads."""

    def __init__(self, base: str, tls: ssl.SSLContext | None) -> None:
        self._idle: list[http.client.HTTPConnection] = []
        # nobody closes a remote: its connections go with it (not by __del__, which in a cycle may run after theirs)
        weakref.finalize(self, _close_all, self._idle).atexit = False
        self._base = urlsplit(base)
        self._tls = tls
        self._lock = threading.Lock()
        self._proxy = _proxy_for(self._base)

    def take(self, timeout: float) -> tuple[http.client.HTTPConnection, bool]:
        """A connected connection, and whether it was used before (the server may just be closing it)."""
        kept = self.take_kept()
        return (kept, True) if kept is not None else (self.connect(timeout), False)

    def take_kept(self) -> http.client.HTTPConnection | None:
        """One that was used before; None where none is idle."""
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None or _is_quiet(connection.sock):
                return connection
            connection.close()

    def begin(self, family: int, address: Any) -> http.client.HTTPConnection | None:
        """A new connection to where another one leads, which does not block and may not be established yet.

        When it is, `secure` comes next. None where a proxy must be spoken to first.
        """
        if self._proxy is not None and self._tls is not None:
            return None
        connection = self._unconnected(None)
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.connect_ex(address)
        except OSError:
            sock.close()
            raise
        connection.sock = sock
        return connection

    def secure(self, connection: http.client.HTTPConnection) -> None:
        """Speak TLS, where that is spoken, on a connection that `begin` made; the handshake is the caller's."""
        if self._tls is not None:
            connection.sock = self._tls.wrap_socket(
                connection.sock, server_hostname=connection.host, do_handshake_on_connect=False
            )

    def give(self, connection: http.client.HTTPConnection) -> None:
        """Keep a connection whose answer was read to its end."""
        with self._lock:
            if connection.sock is not None and len(self._idle) < _KEPT:
                self._idle.append(connection)
                return
        connection.close()

    def close(self) -> None:
        """Close what is idle; connections in use are closed by their users."""
        with self._lock:
            _close_all(self._idle)

    def abandon(self) -> None:
        """Like `close`, in the child of a fork: the lock may be held by a thread that does not exist here."""
        self._lock = threading.Lock()
        self.close()

    def target(self, path: str) -> str:
        """What stands in the request line: the path, or the whole URL for a proxy that forwards plain HTTP."""
        return f"{self._base.scheme}://{self._base.netloc}{path}" if self._forwarded else path

    def headers(self) -> dict[str, str]:
        """What a proxy that forwards plain HTTP wants to see with each request; not part of what is signed."""
        return _proxy_headers(self._proxy) if self._proxy is not None and self._forwarded else {}

    @property
    def _forwarded(self) -> bool:
        return self._proxy is not None and self._tls is None

    def _unconnected(self, timeout: float | None) -> http.client.HTTPConnection:
        at = self._proxy or self._base
        host, port = at.hostname or "", at.port or (443 if at.scheme == "https" else 80)
        if self._tls is None:
            return http.client.HTTPConnection(host, port, timeout=timeout)
        connection = http.client.HTTPSConnection(host, port, timeout=timeout, context=self._tls)
        if self._proxy is not None:
            connection.set_tunnel(self._base.hostname or "", self._base.port or 443, _proxy_headers(self._proxy))
        return connection

    def connect(self, timeout: float) -> http.client.HTTPConnection:
        """A new connection."""
        connection = self._unconnected(timeout)
        try:
            connection.connect()
        except OSError as error:
            connection.close()
            raise ConnectFailedError(str(error)) from error
        return connection


def _close_all(connections: list[http.client.HTTPConnection]) -> None:
    while connections:
        connections.pop().close()


def _is_quiet(sock: socket.socket | None) -> bool:
    """An idle connection has nothing to say: readable means closed, or out of step."""
    if sock is None:
        return False
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return not poll.poll(0)


def _proxy_for(base: SplitResult) -> SplitResult | None:
    found = urllib.request.getproxies().get(base.scheme)
    if not found or urllib.request.proxy_bypass(base.hostname or ""):
        return None
    return urlsplit(found if "://" in found else f"http://{found}")


def _proxy_headers(proxy: SplitResult) -> dict[str, str]:
    if not proxy.username:
        return {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


def wake(sock: socket.socket) -> None:
    """End whatever another thread is waiting for on this socket."""
    try:
        # below TLS on purpose: its own shutdown would write, and belongs to the thread that reads
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    except OSError:
        return  # already closed: nobody waits
