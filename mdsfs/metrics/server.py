"""The metrics server: a child of the engine that answers HTTP, so that no scrape and no browser holds the engine up.

`python -m mdsfs.metrics.server`, started by `mdsfs.engine.metering` with a listening socket and a socket to the engine.
It asks the engine for the status document at most twice a second, however many ask here, and on its own every few
seconds, so that a page that is opened after something went wrong shows how it came.

Read-only, and bounded: few requests at a time, short ones, each with a deadline. It shows sources, mountpoints and
process ids, hence listens on the loopback address unless told otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import json
import os
import signal
import socket
import struct
import threading
import time
from collections import deque
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdsfs.engine.child import die_with_parent

from .exposition import CONTENT_TYPE, exposition
from .sample import sample

if TYPE_CHECKING:
    from .sample import Sample

__all__ = ["main"]

# How old an answer may be; two browsers and two scrapers cost the engine no more than one.
FRESH_SECONDS = 0.4
ENGINE_PATIENCE = 3.0
# Twenty minutes of history.
SAMPLE_SECONDS, SAMPLES = 5.0, 240
MOST_AT_ONCE = 16
REQUEST_SECONDS = 5.0
_NUMBER = struct.Struct("=Q")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"


class EngineSilentError(Exception):
    """The engine did not answer in time."""


class Source:
    """The engine's status documents, asked for over its socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sock.settimeout(ENGINE_PATIENCE)
        self._lock = threading.Lock()
        self._asked = 0
        self._at = -FRESH_SECONDS
        self._document: dict[str, Any] = {}
        self._history: deque[Sample] = deque(maxlen=SAMPLES)

    def document(self) -> dict[str, Any]:
        """A document of now, or nearly; raises EngineSilentError."""
        with self._lock:
            if time.monotonic() - self._at >= FRESH_SECONDS:
                self._document = self._ask()
                self._at = time.monotonic()
            return self._document

    def _ask(self) -> dict[str, Any]:
        self._asked += 1
        try:
            self._sock.send(_NUMBER.pack(self._asked))
            while True:
                packet, fds, _, _ = socket.recv_fds(self._sock, _NUMBER.size, 1)
                if not packet:
                    os._exit(0)  # the engine has ended, and with it everything to tell
                try:
                    # answers to earlier questions, which came too late, are passed over
                    if _NUMBER.unpack(packet)[0] == self._asked:
                        return dict(json.loads(os.pread(fds[0], os.fstat(fds[0]).st_size, 0)))
                finally:
                    for fd in fds:
                        os.close(fd)
        except TimeoutError:
            raise EngineSilentError(f"the engine did not answer within {ENGINE_PATIENCE:g} s") from None
        except OSError:
            os._exit(0)

    def history(self) -> list[Sample]:
        """Samples of the last minutes, oldest first."""
        return list(self._history)

    def remember_forever(self) -> None:
        """Take a sample now and then."""
        while True:
            with contextlib.suppress(EngineSilentError):
                self._history.append(sample(self.document()))
            time.sleep(SAMPLE_SECONDS)


@cache
def _page() -> bytes:
    return Path(__file__).with_name("page.html").read_bytes()


class Handler(BaseHTTPRequestHandler):
    """One request. HTTP/1.0: each connection serves one, so that idle ones hold nothing."""

    server: Server
    timeout = REQUEST_SECONDS
    server_version, sys_version = "mdsfs", ""

    def do_GET(self) -> None:
        """Answer by path."""
        path, _, query = self.path.partition("?")
        if not self._host_is_ours():
            return self._answer(403, "text/plain", b"this name is not one of a server on the loopback address\n")
        try:
            match path:
                case "/":
                    return self._answer(200, "text/html; charset=utf-8", _page())
                case "/metrics":
                    return self._answer(200, CONTENT_TYPE, exposition(self.server.source.document()).encode())
                case "/data.json":
                    return self._answer(200, "application/json", self._data(with_history="history" in query))
                case "/-/healthy":
                    self.server.source.document()
                    return self._answer(200, "text/plain", b"ok\n")
        except EngineSilentError as error:
            return self._answer(503, "text/plain", f"{error}\n".encode())
        return self._answer(404, "text/plain", b"there is /, /metrics, /data.json and /-/healthy\n")

    do_HEAD = do_GET

    def _data(self, *, with_history: bool) -> bytes:
        document = self.server.source.document()
        found: dict[str, Any] = {"sample": sample(document), "document": document}
        if with_history:
            found["history"] = self.server.source.history()
        return json.dumps(found, separators=(",", ":")).encode()

    def _host_is_ours(self) -> bool:
        """On the loopback address: a web page whose name was pointed at it must not read what is here."""
        if not self.server.is_loopback:
            return True
        host = self.headers.get("Host", "localhost").rsplit("]", 1)[0].lstrip("[")
        host = host if host.count(":") > 1 else host.partition(":")[0]
        if host == "localhost":
            return True
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("X-Frame-Options", "DENY"),
            ("Referrer-Policy", "no-referrer"),
            ("Content-Security-Policy", _POLICY),
        ):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a scrape every few seconds is not worth a line."""


class Server(ThreadingHTTPServer):
    """The listening side; takes over a socket that listens already."""

    daemon_threads = True

    def __init__(self, listener: socket.socket, source: Source) -> None:
        address = listener.getsockname()
        super().__init__(address, Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.source = source
        self.is_loopback = ipaddress.ip_address(address[0]).is_loopback
        self._places = threading.BoundedSemaphore(MOST_AT_ONCE)

    def process_request(self, request: Any, client_address: Any) -> None:
        """In a thread, if there is a place; else the connection is closed."""
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """One request, and its place is free again."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever asked has gone, or was too slow: nobody is left to be told."""


def main(argv: list[str] | None = None) -> int:
    """The process."""
    parser = argparse.ArgumentParser(prog="mdsfs.metrics.server", description=__doc__)
    for name in ("listen-fd", "engine-fd", "parent"):
        parser.add_argument(f"--{name}", type=int, required=True)
    options = parser.parse_args(argv)
    die_with_parent(options.parent)
    # Ctrl-C and a service manager's stop reach the whole group; when to end is the engine's business.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    source = Source(socket.socket(fileno=options.engine_fd))
    listener = socket.socket(fileno=options.listen_fd)
    listener.setblocking(True)
    threading.Thread(target=source.remember_forever, daemon=True).start()
    with Server(listener, source) as server:
        server.serve_forever()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
