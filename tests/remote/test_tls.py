"""The same reader over TLS: certificates are checked, connections kept, deadlines and cancelling hold."""

from __future__ import annotations

import contextlib
import http.server
import re
import shutil
import ssl
import subprocess
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from streaming.errors import EndpointUnreachableError, ReadTimeoutError, RemoteError
from streaming.remote import RemoteOptions, open_remote, s3_many
from streaming.remote.interface import SmallRange

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from streaming.remote import RangeReader, Remote

DATA = bytes(range(256)) * 4000


@dataclass
class Tls:
    """A server of one object over TLS; `go` lets it send what is behind the first 100,000 bytes of a `slow` one."""

    endpoint: str
    certificate: Path
    connections: set[tuple[str, int]] = field(default_factory=set)
    asked: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)

    def remote(self, **more: object) -> Remote:
        """A remote on this server."""
        options = {"endpoint_url": self.endpoint, "anonymous": True, "attempts": 2, "connect_timeout": 60.0, **more}
        return open_remote("s3://bucket", RemoteOptions(**options))  # type: ignore[arg-type]


@pytest.fixture
def tls(tmp_path: Path) -> Iterator[Tls]:
    """A server with a certificate that nobody knows yet."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed (apt-get install openssl)")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            known.connections.add(self.client_address)
            first, last = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups()  # type: ignore[union-attr]
            body = DATA[int(first) : int(last) + 1]
            self.send_response(206)
            self.send_header("ETag", '"v"')
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(DATA)}")
            self.end_headers()
            with contextlib.suppress(OSError):  # whoever cancels is gone
                self.wfile.write(body[:100_000])
                known.asked.set()
                if "slow" in self.path:
                    known.go.wait()
                self.wfile.write(body[100_000:])

        def log_message(self, *args: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128  # it shakes hands with one after another; whom the queue can't hold waits for seconds

    server = Server(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    known = Tls(f"https://localhost:{server.server_address[1]}", certificate)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield known
    finally:
        known.go.set()
        server.shutdown()
        thread.join()
        server.server_close()


def read_all(reader: RangeReader) -> None:
    """Read to the end, or until it raises."""
    while reader.readinto(memoryview(bytearray(1 << 16))):
        pass


def test_unknown_certificate(tls: Tls) -> None:
    """A certificate that nobody vouches for is refused, once."""
    remote = tls.remote()
    with pytest.raises(EndpointUnreachableError, match="certificate"):
        remote.read("x", start=0, stop=10)
    assert remote.counters.snapshot()["retries"] == 0


def test_many_ranges_over_connections_of_their_own(tls: Tls, monkeypatch: pytest.MonkeyPatch) -> None:
    """Handshakes go on beside each other, and beside the first answers."""
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tls.certificate))
    monkeypatch.setattr(s3_many, "PATIENCE", 120.0)  # a server that is merely slow is waited for
    remote = tls.remote()
    wanted = [SmallRange("x", at * 20_000, at * 20_000 + 9_000 + at, '"v"', len(DATA)) for at in range(40)]
    for _ in range(2):
        found: dict[int, bytes] = {}
        remote.read_many(wanted, lambda number, data, found=found: found.update({number: bytes(data)})).run()
        assert [found.get(number) for number in range(40)] == [DATA[each.start : each.stop] for each in wanted]
    assert len(tls.connections) <= 40


def test_trusted_by_variable(tls: Tls, monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS_CA_BUNDLE is honoured, and one connection serves one range after another."""
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tls.certificate))
    remote = tls.remote()
    for start in (0, 5, 500_000):
        assert remote.read("x", start=start, stop=900_000)[0] == DATA[start:900_000]
    assert len(tls.connections) == 1


def test_deadline(tls: Tls, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deadline in mid-body ends the wait for an encrypted record too."""
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tls.certificate))
    deadline = time.monotonic() + 0.5
    with (
        tls.remote().open_range("slow", 0, len(DATA), deadline=deadline) as reader,
        pytest.raises(ReadTimeoutError, match="slow"),
    ):
        read_all(reader)


def test_cancel(tls: Tls, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancelling ends a thread that waits for an encrypted record."""
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tls.certificate))
    reader = tls.remote().open_range("slow", 0, len(DATA))
    raised: list[str] = []

    def read() -> None:
        try:
            read_all(reader)
        except RemoteError as error:
            raised.append(str(error))

    thread = threading.Thread(target=read)
    thread.start()
    assert tls.asked.wait(60)
    reader.cancel()
    thread.join()
    assert "cancelled" in raised[0]
    reader.close()
