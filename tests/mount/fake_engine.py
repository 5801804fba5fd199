"""An engine of a few lines that speaks the real protocol: what it holds and how it answers is up to the test.

It serves one dataset of plain objects from a cache directory of its own. Nothing is fetched: content appears when the
test says so, or when a `want` comes and the test let it be answered.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from streaming.engine import messages
from streaming.engine.address import prepare_runtime_directory, socket_path
from streaming.engine.residency import BLOCK, ResidencyWriter, blocks_of
from streaming.errors import ShardCorruptError, StreamingError, to_wire
from streaming.mds.tables import objects_tables

if TYPE_CHECKING:
    from pathlib import Path


class FakeEngine:
    """Listens at the socket of `cache_dir`; a context manager."""

    def __init__(self, cache_dir: Path, contents: dict[str, bytes], index: bytes | None = None) -> None:
        self.cache_dir = cache_dir
        self.index = index
        """With an index the dataset is one of MDS."""
        self.names = list(contents)
        self.contents = list(contents.values())
        self.wants: list[dict[str, Any]] = []
        self.done: list[int] = []
        self.requests: list[str] = []
        self.direct = False
        """Answer wants from memory files, as an engine without room does."""
        self.failure: StreamingError | None = None
        self.allowed = threading.Event()
        """Wants are answered only while this is set."""
        self.allowed.set()
        self.wanted = threading.Event()
        self.answers_status = threading.Event()
        self.answers_status.set()
        self._write_files()
        self._listener: socket.socket | None = None
        self._connections: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def _write_files(self) -> None:
        self.cache_dir.mkdir(exist_ok=True)
        rows = [(name, name, len(data), 0, None) for name, data in zip(self.names, self.contents, strict=True)]
        # New files, never new content of old ones: an engine before this one may have handed those out.
        for name in ("tables", "residency", *(f"file{number}" for number in range(len(rows)))):
            (self.cache_dir / name).unlink(missing_ok=True)
            (self.cache_dir / name).touch()
        (self.cache_dir / "tables").write_bytes(b"".join(objects_tables(rows)))
        (self.cache_dir / "index").write_bytes(self.index or b"")
        sizes = np.array([len(data) for data in self.contents], np.int64)
        self.residency = ResidencyWriter.open(self.cache_dir / "residency", sizes)

    # ---- what tests do with it ---------------------------------------------------------------------------------------

    def fill(self, file: int, offset: int = 0, length: int | None = None) -> None:
        """Make a range resident."""
        data = self.contents[file]
        first, count = blocks_of(offset, len(data) - offset if length is None else length)
        start, stop = first * BLOCK, min((first + count) * BLOCK, len(data))
        fd = os.open(self.cache_dir / f"file{file}", os.O_WRONLY)
        os.pwrite(fd, data[start:stop], start)
        os.close(fd)
        self.residency.set_blocks(file, first, count)

    def evict(self, file: int) -> None:
        """Withdraw a file and overwrite its bytes, so that serving them would be seen."""
        self.residency.begin(file)
        self.residency.clear_file(file)
        (self.cache_dir / f"file{file}").write_bytes(b"")
        self.residency.end(file)

    def disconnect(self) -> None:
        """Drop every connection, as a dying engine does."""
        connections, self._connections = self._connections, []
        for sock in connections:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        prepare_runtime_directory()
        path = socket_path(self.cache_dir)
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(os.fspath(path))
        self._listener.listen()
        self._start(self._accept, self._listener)
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._listener is not None
        self.allowed.set()
        self.answers_status.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self.disconnect()
        for thread in self._threads:
            thread.join(60)
        self._listener.close()
        socket_path(self.cache_dir).unlink(missing_ok=True)
        self.residency.close()

    # ---- the server --------------------------------------------------------------------------------------------------

    def _start(self, target: Any, *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                self._connections.append(sock)
                self._start(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            while True:
                packet, _ = messages.receive(sock)
                if not packet:
                    return
                message = messages.decode(packet)
                if message["op"] == "done":
                    self.done.append(message["want"])
                elif message["op"] in ("want", "status"):
                    self._start(self._reply, sock, message)
                else:
                    self._reply(sock, message)

    def _reply(self, sock: socket.socket, message: dict[str, Any]) -> None:
        self.requests.append(message["op"])
        fds: list[int] = []
        try:
            answer, fds = getattr(self, f"_{message['op']}")(message)
        except StreamingError as error:
            answer = {"error": to_wire(error)}
        with contextlib.suppress(OSError):
            messages.send(sock, messages.encode({"id": message["id"], **answer}), fds)
        messages.close_fds(fds)

    def _hello(self, message: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
        return {"protocol": 1, "pid": os.getpid(), "version": "0", "cache_dir": str(self.cache_dir), "options": {}}, []

    def _open(self, message: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
        kind = "objects" if self.index is None else "mds"
        dataset = {"dataset": 5, "prefix": "", "kind": kind, "files": len(self.names), "url": message["url"]}
        size = sum(len(data) for data in self.contents)
        return {"datasets": [{**dataset, "shown_size": size, "mtime_ns": 10**18}], "warnings": []}, []

    def _attach(self, message: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
        names = ("tables", "residency", "index")[: 2 if self.index is None else 3]
        return {}, [os.open(self.cache_dir / name, os.O_RDONLY) for name in names]

    def _file(self, message: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
        number = message["file"]
        fd = os.open(self.cache_dir / f"file{number}", os.O_RDONLY)
        return {"direct": False, "size": len(self.contents[number])}, [fd]

    def _want(self, message: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
        if not message["ranges"]:
            return {}, []
        self.wants.append(message)
        self.wanted.set()
        self.allowed.wait(120)
        if self.failure is not None:
            raise self.failure
        (file, offset, length) = message["ranges"][0]
        if not self.direct:
            self.fill(file, offset, length)
            return {}, []
        fd = os.memfd_create("direct")
        os.write(fd, self.contents[file][offset : offset + length])
        return {"direct": [[file, offset, length, 0]]}, [fd]

    def _state(self, message: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
        name = self.names[message["file"]]
        answer = {"state": "absent", "level": "none", "resident_bytes": 0, "source": f"fake://{name}", "hash": None}
        return answer, []

    def _register(self, message: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
        return {}, []

    def _report(self, message: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
        return {}, []

    def _status(self, message: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
        self.answers_status.wait(120)
        fd = os.memfd_create("status")
        os.write(fd, json.dumps({"cache": {"limit_bytes": 1}}).encode())
        return {}, [fd]


CORRUPT = ShardCorruptError("shard-corrupt: made up for a test")
