"""A proxy between a client and a storage server: counts what the server sends, delays it, and breaks it on request.

It runs in a thread of the test process, so a test switches faults with a method call. It forwards one request at a
time per
connection, with a connection of its own to the server for each, and leaves the Host header alone: signatures stay
valid.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Coroutine

__all__ = ["Fault", "FaultProxy", "Request"]

PIECE = 256 << 10


@dataclass
class Fault:
    """What happens to matching requests.

    kind: `status` (answer `status` with S3 error `code` instead of asking the server), `hang` (no answer), `reset`
    and `truncate` and
    `stall` and `corrupt` (after `after` bytes of the body: RST, clean end, silence, one flipped byte), `etag`
    (another ETag),
    `no-range` (the Range header is not forwarded: the whole object comes), `no-if-match` (If-Match is not
    forwarded), `refuse`.
    match: part of the key; times: how many requests it hits (None: all); seconds: how long `hang` and `stall` last
    (None: until the
    fault is cleared).
    """

    kind: str
    match: str = ""
    times: int | None = None
    after: int = 0
    seconds: float | None = None
    status: int = 503
    code: str = "SlowDown"
    method: str = "GET"
    hits: int = 0


@dataclass
class Request:
    """One request as it was seen."""

    method: str
    key: str
    range: str | None
    headers: dict[str, str]
    status: int = 0
    sent: int = 0


@dataclass
class _Head:
    line: bytes
    headers: list[tuple[bytes, bytes]]

    def get(self, name: bytes) -> bytes | None:
        return next((value for key, value in self.headers if key.lower() == name), None)

    def without(self, *names: bytes) -> list[tuple[bytes, bytes]]:
        return [(key, value) for key, value in self.headers if key.lower() not in names]


def _parse(raw: bytes) -> _Head:
    lines = raw.split(b"\r\n")
    headers = []
    for line in lines[1:]:
        if line:
            key, _, value = line.partition(b":")
            headers.append((key, value.strip()))
    return _Head(lines[0], headers)


def _render(line: bytes, headers: list[tuple[bytes, bytes]]) -> bytes:
    return line + b"\r\n" + b"".join(key + b": " + value + b"\r\n" for key, value in headers) + b"\r\n"


@dataclass
class FaultProxy:
    """`upstream` is the server's endpoint; rtt in seconds (before each answer), rate in bytes/s for the whole link."""

    upstream: str
    rtt: float = 0.0
    rate: float = 0.0
    faults: list[Fault] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._free_at = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    # ---- control, from the test's thread ----------------------------------------------------------------------------

    def __enter__(self) -> Self:
        address = urlsplit(self.upstream)
        self._host, self._port = address.hostname or "127.0.0.1", address.port or 80
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = self._listener.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._loop = asyncio.new_event_loop()
        self._changed, self._stop = asyncio.Event(), asyncio.Event()  # a test may end before the thread has begun
        self._thread = threading.Thread(target=self._main, name="fault-proxy", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(60)

    def add(self, fault: Fault) -> Fault:
        """Switch a fault on."""
        with self._lock:
            self.faults.append(fault)
        return fault

    def remove(self, fault: Fault) -> None:
        """Switch one fault off; whatever hangs or stalls goes on."""
        with self._lock:
            self.faults[:] = [each for each in self.faults if each is not fault]
        self._loop.call_soon_threadsafe(self._release)

    def clear(self) -> None:
        """Switch all faults off and let what hangs or stalls go on."""
        with self._lock:
            self.faults.clear()
        self._loop.call_soon_threadsafe(self._release)

    def reset_counters(self) -> None:
        """Forget what was seen so far."""
        with self._lock:
            self.requests.clear()

    def seen(self, match: str = "", method: str = "GET") -> list[Request]:
        """Requests so far whose key contains `match`."""
        with self._lock:
            return [request for request in self.requests if match in request.key and request.method == method]

    def bytes_sent(self, match: str = "") -> int:
        """Body bytes that the server sent for GETs of keys containing `match`."""
        return sum(request.sent for request in self.seen(match))

    def bytes_by_key(self) -> Counter[str]:
        """Body bytes of GETs per key."""
        total: Counter[str] = Counter()
        for request in self.seen():
            total[request.key] += request.sent
        return total

    # ---- the proxy's own thread -------------------------------------------------------------------------------------

    def _main(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._accept, sock=self._listener, limit=1 << 20)
        await self._stop.wait()
        # Nothing more is accepted. What was accepted just now still needs an open server to become a connection, and
        # the task of asyncio's own that makes one of it: otherwise its socket stays open.
        self._loop.remove_reader(self._listener)
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            for writer in self._writers:
                writer.transport.abort()
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(tasks)
        server.close()

    def _release(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        self._start(self._connection(reader, writer))

    def _start(self, coroutine: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._exchange(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            self._writers.discard(writer)

    def _pick(self, request: Request) -> Fault | None:
        with self._lock:
            self.requests.append(request)
            for fault in self.faults:
                if (
                    fault.method == request.method
                    and fault.match in request.key
                    and (fault.times is None or fault.hits < fault.times)
                ):
                    fault.hits += 1
                    return fault
        return None

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; False when the connection is done."""
        try:
            raw = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return False
        head = _parse(raw[:-4])
        method, target, _ = head.line.split(b" ", 2)
        if (head.get(b"expect") or b"").lower() == b"100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await self._request_body(reader, head)
        path = unquote(target.partition(b"?")[0].decode("latin-1"))
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in head.headers}
        request = Request(method.decode(), path.lstrip("/").partition("/")[2], headers.get("range"), headers)
        fault = self._pick(request)
        kind = fault.kind if fault else ""
        if fault and kind == "refuse":
            _reset(writer)
            return False
        if fault and kind == "hang":
            await self._pause(fault)
            return False
        if self.rtt:
            await asyncio.sleep(self.rtt)
        if fault and kind == "status":
            return await self._answer_status(writer, request, fault)
        drop = [b"connection", b"expect"]
        drop += [b"range"] if kind == "no-range" else []
        drop += [b"if-match"] if kind == "no-if-match" else []
        return await self._forward(
            writer, request, fault, _render(head.line, [*head.without(*drop), (b"Connection", b"close")]) + body
        )

    async def _request_body(self, reader: asyncio.StreamReader, head: _Head) -> bytes:
        if (head.get(b"transfer-encoding") or b"").lower() == b"chunked":
            parts = []
            while True:
                line = await reader.readuntil(b"\r\n")
                size = int(line.split(b";")[0], 16)
                data = await reader.readexactly(size + 2)
                parts += [line, data]
                if not size:
                    return b"".join(parts)
        return await reader.readexactly(int(head.get(b"content-length") or 0))

    async def _answer_status(self, writer: asyncio.StreamWriter, request: Request, fault: Fault) -> bool:
        request.status = fault.status
        body = f"<?xml version='1.0'?><Error><Code>{fault.code}</Code><Message>injected</Message></Error>".encode()
        line = f"HTTP/1.1 {fault.status} Injected".encode()
        writer.write(
            _render(line, [(b"Content-Type", b"application/xml"), (b"Content-Length", str(len(body)).encode())]) + body
        )
        await writer.drain()
        return True

    async def _forward(self, writer: asyncio.StreamWriter, request: Request, fault: Fault | None, raw: bytes) -> bool:
        upstream, to_upstream = await asyncio.open_connection(self._host, self._port, limit=1 << 20)
        try:
            to_upstream.write(raw)
            head = _parse((await upstream.readuntil(b"\r\n\r\n"))[:-4])
            while head.line.split(b" ")[1] == b"100":
                head = _parse((await upstream.readuntil(b"\r\n\r\n"))[:-4])
            request.status = int(head.line.split(b" ")[1])
            headers = head.without(b"connection")
            if fault and fault.kind == "etag":
                headers = [(key, b'"changed"' if key.lower() == b"etag" else value) for key, value in headers]
            length = head.get(b"content-length")
            bodiless = request.method == "HEAD" or request.status in {204, 304}
            if length is None and not bodiless:
                headers.append((b"Connection", b"close"))
            writer.write(_render(b"HTTP/1.1 " + head.line.split(b" ", 1)[1], headers))
            whole = bodiless or await self._body(
                upstream, writer, request, fault, None if length is None else int(length)
            )
            await writer.drain()
            return whole and (bodiless or length is not None)
        finally:
            to_upstream.close()
            with contextlib.suppress(OSError):
                await to_upstream.wait_closed()

    async def _body(
        self,
        upstream: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        request: Request,
        fault: Fault | None,
        length: int | None,
    ) -> bool:
        """Copy the body, with what the fault does to it; False when the connection must end."""
        breaks = fault if fault and fault.kind in {"reset", "truncate", "stall", "corrupt"} else None
        while length is None or request.sent < length:
            data = await upstream.read(PIECE)
            if not data:
                return False
            if breaks and request.sent + len(data) > breaks.after:
                cut = max(0, breaks.after - request.sent)
                if breaks.kind == "corrupt":
                    data = data[:cut] + bytes([data[cut] ^ 0xFF]) + data[cut + 1 :]
                else:
                    request.sent += cut
                    writer.write(data[:cut])
                    await writer.drain()
                    if breaks.kind == "stall":
                        await self._pause(breaks)
                    elif breaks.kind == "reset":
                        _reset(writer)
                    return False
                breaks = None
            await self._throttle(len(data))
            request.sent += len(data)  # before whoever waits for the bytes can look
            writer.write(data)
            await writer.drain()
        return True

    async def _throttle(self, count: int) -> None:
        if self.rate:
            now = self._loop.time()
            self._free_at = max(self._free_at, now) + count / self.rate
            await asyncio.sleep(self._free_at - now)

    async def _pause(self, fault: Fault) -> None:
        with self._lock:
            if not any(each is fault for each in self.faults):
                return  # switched off between the request and here
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), fault.seconds)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST instead of FIN."""
    connection: socket.socket | None = writer.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
