"""The mount's tie to an engine, whichever runs: reads go on across engine deaths, up to their own deadline.

Owns the current session and the task that makes the next one. A read looks at the residency table first and asks the
engine only for what is absent; the bytes it returns were there before and after they were copied, or were held by the
engine meanwhile.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trio

from streaming.engine import messages
from streaming.engine.address import socket_path
from streaming.engine.client import EngineClient
from streaming.errors import (
    EngineUnavailableError,
    ProtocolError,
    ReadTimeoutError,
    ShardCorruptError,
    StreamingError,
)

from .cachefiles import CacheFile, pread_exactly, pread_nowait
from .connection import Connection, Reply
from .recency import Touched
from .session import REPLY_PATIENCE, Attached, Session, SourceOptions, open_session

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from streaming.engine.spawn import EngineOptions

__all__ = ["Link", "Place"]

log = logging.getLogger(__name__)

# The engine answers a `want` at its deadline; when it is this late, the engine itself is stuck.
GRACE = 0.5
# Between attempts to reach an engine: the first follow a crash closely, later ones must not be a load.
FIRST_PAUSE, LAST_PAUSE = 0.05, 2.0
# Between two reports: as fresh as somebody who looks at a live page expects.
REPORT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Place:
    """A range of one file; `handle` is the open file that reads it, so that the engine can tell sequential readers."""

    dataset: int
    row: int
    offset: int
    size: int
    handle: int | None = None


class Link:
    """Reads, states and status for the mount's handlers. `run` must be running."""

    def __init__(
        self,
        engine: EngineOptions,
        source: SourceOptions,
        *,
        read_timeout: float,
        descriptors: int,
        spawn: bool = True,
    ) -> None:
        """Without `spawn` only an engine that runs is used, whatever its options: they are its own business."""
        self._engine = engine
        self._source = source
        self._read_timeout = read_timeout
        self._descriptors = descriptors
        self._spawn = engine if spawn else None
        self._session: Session | None = None
        self._ready = trio.Event()
        self._touched = Touched()
        self.last_error: StreamingError | None = None
        self._reads: set[trio.CancelScope] = set()
        self.sessions = 0
        self.waiting = 0
        self.reads_at_once = 0
        self.reads_asked = 0
        self._told: Session | None = None
        self.known: list[Attached] = []
        """The datasets of the first session: what the mount shows for as long as it lives."""

    def __repr__(self) -> str:
        return f"Link({self._session or self.last_error or 'not connected'}, {self.waiting} reads waiting)"

    @property
    def socket_path(self) -> Path:
        return socket_path(self._engine.cache_dir)

    @property
    def warnings(self) -> tuple[str, ...]:
        return self._session.warnings if self._session else ()

    # ---- keeping a session -------------------------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a session. Raises only if the first one can't be made; later failures are retried for ever."""
        pause = FIRST_PAUSE
        while True:
            failure = await self._one_session(task_status)
            if failure is None:
                pause = FIRST_PAUSE
                continue
            if not self.sessions:
                raise failure
            if str(failure) != str(self.last_error):
                log.warning("no engine for now: %s", failure, extra={"event": "engine-lost"})
            self.last_error = failure
            await trio.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE)

    async def _one_session(self, task_status: trio.TaskStatus[None]) -> StreamingError | None:
        """One session from its start to its end; returns why it could not start."""
        try:
            connection = Connection(await trio.to_thread.run_sync(self._connect))
        except StreamingError as error:
            return error
        except OSError as error:
            return EngineUnavailableError(f"cannot reach an engine: {error}")
        failure: StreamingError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.receive_forever)
            try:
                session = await self._opened(connection)
            except StreamingError as error:
                failure = error
            except (OSError, KeyError, TypeError, ValueError) as error:
                failure = ProtocolError(f"the engine's answers make no sense: {error!r}")
            if failure is not None:
                if not self.sessions:
                    await _dismiss(connection)
                connection.close()
            else:
                self._publish(session, task_status)
                await connection.ended.wait()
                self._withdraw(session)
        return failure

    async def _opened(self, connection: Connection) -> Session:
        hello = await connection.request(
            "hello",
            patience=REPLY_PATIENCE,
            protocol=messages.PROTOCOL,
            client="mount",
            pid=os.getpid(),
            expect=self._spawn.expect() if self._spawn else {},
        )
        hello.close()
        return await open_session(connection, self._source, self._descriptors)

    def _connect(self) -> socket.socket:
        # The synchronous client starts an engine where none runs, and keeps it from leaving until we are connected.
        with EngineClient.connect(self._engine.cache_dir, self._spawn, client="mount"):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
            try:
                sock.connect(os.fspath(self.socket_path))
            except OSError as error:
                sock.close()
                raise EngineUnavailableError(f"no engine answers at {self.socket_path}: {error.strerror}") from error
            return sock

    def _publish(self, session: Session, task_status: trio.TaskStatus[None]) -> None:
        if self.sessions:
            session.arrange(self.known)
            log.warning("connected to an engine again", extra={"event": "engine-back"})
        else:
            self.known = session.attached
        self.sessions += 1
        self.last_error = None
        self._session = session
        self._ready.set()
        if self.sessions == 1:
            task_status.started()

    def _withdraw(self, session: Session) -> None:
        self._session = None
        self._ready = trio.Event()
        self._touched.clear()
        # The first session's index files are what the mount shows: they stay open until the mount ends.
        session.close(keep=self.known)
        session.withdrawn.set()

    async def next_session(self) -> Session:
        """The living session, as soon as there is one."""
        while (session := self._session) is None:
            await self._ready.wait()
        return session

    async def _session_by(self, deadline: float) -> Session:
        with trio.move_on_at(deadline):
            while True:
                session = self._session
                if session is None:
                    await self._ready.wait()
                elif session.connection.is_open:
                    return session
                else:
                    await session.withdrawn.wait()  # its end was noticed, but not yet by the task that keeps sessions
        raise ReadTimeoutError(f"no engine within the read timeout: {self.last_error or 'it is being started'}")

    # ---- reading -----------------------------------------------------------------------------------------------------

    def read_nowait(self, place: Place, into: memoryview) -> bool:
        """Fill `into` if the bytes are in the cache and in memory; False where anything has to be waited for."""
        session = self._session
        if session is None or not session.connection.is_open:
            return False
        if (file := session.files.get_nowait(place.dataset, place.row)) is None:
            return False
        if file.direct:
            return pread_nowait(file.fd, place.offset, into)
        residency = session.dataset(place.dataset).residency
        generation = residency.generation(place.row)
        if generation & 1 or not residency.is_resident(place.row, place.offset, place.size):
            return False
        if not pread_nowait(file.fd, place.offset, into) or residency.generation(place.row) != generation:
            return False
        self._touched.add(place.dataset, place.row, place.offset)
        self.reads_at_once += 1
        return True

    async def read(self, place: Place) -> memoryview:
        """Exactly the bytes of the range, which lies inside the file; ReadTimeoutError at the read's deadline."""
        self.waiting += 1
        scope = trio.CancelScope()
        self._reads.add(scope)
        try:
            with scope:
                return await self._read(place, trio.current_time() + self._read_timeout)
            raise EngineUnavailableError("the mount is ending")
        finally:
            self._reads.discard(scope)
            self.waiting -= 1

    def give_up_reads(self) -> None:
        """Fail every read that waits: the mount is ending."""
        for scope in self._reads:
            scope.cancel()

    async def _read(self, place: Place, deadline: float) -> memoryview:
        while True:
            session = await self._session_by(deadline)
            try:
                data = await self._read_once(session, place, deadline)
            except EngineUnavailableError:
                if session.connection.is_open:
                    raise
                continue  # the engine died: the next session goes on with this read
            if data is not None:
                return data
            if trio.current_time() >= deadline:
                raise ReadTimeoutError("the range was evicted again and again until the read timeout")

    async def _read_once(self, session: Session, place: Place, deadline: float) -> memoryview | None:
        session.dataset(place.dataset)  # raises if it is no longer what the mount shows
        with await session.files.get(place.dataset, place.row) as file:
            if file.direct:
                data = await session.files.pread(file, place.offset, place.size)
                if len(data) < place.size:
                    missing = place.size - len(data)
                    raise ShardCorruptError(f"the source's file ends {missing} bytes before its index says")
                return data
            if (copied := await self._copy(session, file, place)) is not None:
                self._touched.add(place.dataset, place.row, place.offset)
                return copied
            return await self._want(session, file, place, deadline)

    async def _want(self, session: Session, file: CacheFile, place: Place, deadline: float) -> memoryview | None:
        """Ask the engine for the range and copy it while the engine holds it."""
        self.reads_asked += 1
        left = max(0.0, deadline - trio.current_time())
        reply = await session.connection.request(
            "want",
            patience=left + GRACE,
            dataset=session.dataset(place.dataset).number,
            ranges=[[place.row, place.offset, place.size]],
            handle=place.handle,
            timeout=left,
            touch=self._touched.take(place.dataset),
        )
        try:
            if direct := reply.message.get("direct"):
                return await self._from_memfds(session, file, place, reply, direct)
            return await self._copy(session, file, place)
        finally:
            reply.close()
            session.connection.done(reply.request)

    async def _copy(self, session: Session, file: CacheFile, place: Place) -> memoryview | None:
        """The bytes, if all of them were there before and after copying."""
        residency = session.dataset(place.dataset).residency
        generation = residency.generation(place.row)
        if generation & 1 or not residency.is_resident(place.row, place.offset, place.size):
            return None
        data = await session.files.pread(file, place.offset, place.size)
        unchanged = residency.generation(place.row) == generation and len(data) == place.size
        return data if unchanged and session.connection.is_open else None

    async def _from_memfds(
        self, session: Session, file: CacheFile, place: Place, reply: Reply, direct: list[list[int]]
    ) -> memoryview | None:
        """Bytes that had no room in the cache; what the memfds leave out is held in the cache file."""
        data = bytearray(place.size)
        covered = 0
        for _, offset, length, number in direct:
            at = offset - place.offset
            if at < 0 or at + length > place.size or not 0 <= number < len(reply.fds):
                raise ProtocolError("the engine answered bytes that nobody asked for")
            if os.preadv(reply.fds[number], [memoryview(data)[at : at + length]], 0) != length:
                raise ProtocolError("the engine's memory file is shorter than it said")
            covered += length
        if covered == place.size:
            return memoryview(data)
        base = await session.files.pread(file, place.offset, place.size)
        if len(base) < place.size:
            return None
        for _, offset, length, _ in direct:
            at = offset - place.offset
            base[at : at + length] = data[at : at + length]
        return base

    async def read_index(self, dataset: int, offset: int, size: int) -> memoryview:
        """Bytes of a dataset's index as shown, which is a plain file in the cache directory."""
        fd = self.known[dataset].index_fd
        if fd is None:
            raise ProtocolError("the engine gave no index for a dataset that has one")
        data = await trio.to_thread.run_sync(pread_exactly, fd, offset, size)
        if len(data) != size:
            raise ShardCorruptError("the shown index in the cache directory was cut off: unmount and mount again")
        return data

    async def tell_touched(self) -> None:
        """Tell the engine about reads it never heard of, at most once a second, so that it evicts something else."""
        while True:
            await self._touched.wait()
            await trio.sleep(1)
            session = self._session
            for dataset, touched in self._touched.take_all():
                if session is None:
                    break
                with contextlib.suppress(StreamingError):
                    number = session.dataset(dataset).number
                    reply = await session.connection.request(
                        "want", patience=REPLY_PATIENCE, dataset=number, ranges=[], timeout=0, touch=touched
                    )
                    reply.close()
                    session.connection.done(reply.request)

    async def report(self, figures: Callable[[], dict[str, Any]]) -> None:
        """Tell the engine what this mount does, when it has changed, so that one place shows the whole host."""
        told: dict[str, Any] = {}
        while True:
            await trio.sleep(REPORT_SECONDS)
            now = figures()
            session = self._session
            if session is None or (now == told and session is self._told):
                continue
            with contextlib.suppress(StreamingError):
                (await session.connection.request("report", patience=REPLY_PATIENCE, **now)).close()
                told, self._told = now, session

    # ---- everything else ---------------------------------------------------------------------------------------------

    async def state(self, dataset: int, row: int, patience: float) -> dict[str, Any]:
        """What the engine says about a file."""
        session = await self._session_by(trio.current_time() + patience)
        return await session.state(dataset, row)

    async def engine_status(self, patience: float) -> bytes:
        """The engine's status document (JSON)."""
        session = await self._session_by(trio.current_time() + patience)
        return await session.status(patience)

    async def dismiss_engine(self) -> None:
        """The mount has failed: an engine that was started for it need not wait for others to come."""
        if self._session is not None:
            await _dismiss(self._session.connection)

    def close(self) -> None:
        """End the connection; whatever was claimed ends with it."""
        if self._session is not None:
            self._session.connection.close()


async def _dismiss(connection: Connection) -> None:
    # Refused by another user's engine, unknown to an older one: those leave when they are idle.
    with contextlib.suppress(StreamingError):
        (await connection.request("dismiss", patience=REPLY_PATIENCE)).close()
