"""One client: what it has opened, what it holds, and the answers to its requests. Everything of it ends with its
connection.

Requests that can be answered from memory are answered at once, in the order they come; the others (an `open`, a `want`
of absent bytes) run as tasks beside each other, so that a slow store keeps nobody waiting who does not need it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from typing import TYPE_CHECKING, Any

import trio

from streaming.engine import messages
from streaming.engine.hint import LARGEST
from streaming.engine.sealed import map_sealed
from streaming.errors import (
    CacheDirectoryError,
    CacheFullError,
    EngineRefusedError,
    ProtocolError,
    ReadTimeoutError,
    StreamingError,
    to_wire,
)

from ..counters import Activity
from . import fields
from .connection import Connection, PeerGone
from .keeping import ACTS
from .membership import Begun, Membership
from .opened import Opened, named

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from pathlib import Path

    from ..cache.dataset import Dataset
    from ..engine import Engine
    from ..filling.wants import Claim, WantedRange

__all__ = ["Peer", "Session"]

log = logging.getLogger(__name__)

CLIENTS = ("mount", "reader", "cli")
# Far above what any honest client has open; a hostile one gets an error instead of the engine's memory.
MAX_OPEN_REQUESTS = 4096
MAX_CLAIMS = 65536
MAX_DATASETS = 65536


class Peer:
    """Who is at the other end, as the kernel says."""

    __slots__ = ("gid", "pid", "uid")

    def __init__(self, pid: int, uid: int, gid: int) -> None:
        self.pid, self.uid, self.gid = pid, uid, gid

    @property
    def is_master(self) -> bool:
        """Whether this client may give orders: the engine's own user, and root."""
        return self.uid in (0, os.geteuid())


class Session:
    """A connected client."""

    def __init__(self, engine: Engine, connection: Connection, peer: Peer, nursery: trio.Nursery) -> None:
        self.peer = peer
        self.kind: str | None = None
        self.pid = peer.pid
        self.mounts: list[dict[str, str]] = []
        self.activity = Activity()
        self._engine = engine
        self._connection = connection
        self._nursery = nursery
        self._datasets: dict[int, Opened] = {}
        self._running: set[int] = set()
        self._current = "", 0.0
        """The op that is being taken, and since when."""
        self._claims: dict[int, Claim] = {}
        self.membership = Membership(engine.hints)

    def __repr__(self) -> str:
        return f"Session({self.kind} pid {self.pid}, {len(self._datasets)} datasets, {len(self._claims)} claims)"

    async def serve(self) -> None:
        """Answer requests until the client goes."""
        try:
            while True:
                request = await self._connection.receive()
                try:
                    self._take(request)
                finally:
                    self._connection.close_received()
        except PeerGone:
            return

    def end(self) -> None:
        """Let go of everything that the client claimed; its tasks must have ended."""
        self._engine.departed.update(self.activity.totals(is_mount=bool(self.mounts)))
        for claim in self._claims.values():
            self._engine.wants.release(claim)
        self._claims.clear()
        self.membership.end()
        for opened in self._datasets.values():
            self._engine.sources.release(opened.dataset)
        self._datasets.clear()

    # ---- requests ----------------------------------------------------------------------------------------------------

    def _take(self, request: dict[str, Any]) -> None:
        if request.get("op") == "done" and "id" not in request:
            self._done(request)
            return
        one_way = request.get("op")
        if "id" not in request and isinstance(one_way, str) and one_way in ONE_WAY:
            with contextlib.suppress(ProtocolError):  # nobody waits to be told
                ONE_WAY[one_way](self, request)
            return
        number = request.get("id")
        if not isinstance(number, int) or isinstance(number, bool) or number <= 0:
            raise PeerGone  # there is nobody whom an answer would reach
        try:
            op = fields.check_keys(request)
            if number in self._running or len(self._running) >= MAX_OPEN_REQUESTS:
                raise ProtocolError("too many requests are open, or one of this id")
            if self.kind is None and op != "hello":
                raise ProtocolError("hello comes first")
            self._current = op, time.perf_counter()
            getattr(self, f"_op_{op}", self._keep)(number, request)
            if number not in self._running:
                self._time(*self._current)
        except StreamingError as error:
            self._refuse(number, error)

    def _answer(self, number: int, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Reply and close the descriptors."""
        self._connection.send({"id": number, **message}, fds, lambda: messages.close_fds(fds))

    def _refuse(self, number: int, error: StreamingError) -> None:
        self._connection.send({"id": number, "error": to_wire(error)})

    def _run(self, number: int, work: Callable[[], Awaitable[None]]) -> None:
        """Answer later."""
        op, begun = self._current

        async def run() -> None:
            try:
                await work()
            except StreamingError as error:
                self._refuse(number, error)
            finally:
                self._running.discard(number)
                self._time(op, begun)

        self._running.add(number)
        self._nursery.start_soon(run, name=f"request {number} of pid {self.pid}")

    def _time(self, op: str, begun: float) -> None:
        self._engine.timings.of("request_seconds", "op", op).observe(time.perf_counter() - begun)

    def _opened(self, request: dict[str, Any]) -> Opened:
        opened = self._datasets.get(fields.number(request, "dataset"))
        if opened is None:
            raise ProtocolError(f"dataset: {request['dataset']} is not open on this connection")
        return opened

    def _file(self, request: dict[str, Any]) -> tuple[Opened, int]:
        opened = self._opened(request)
        return opened, fields.number(request, "file", most=len(opened.dataset.tables.files) - 1)

    @property
    def has_open(self) -> bool:
        """Whether this client has anything open."""
        return bool(self._datasets)

    # ---- ops ---------------------------------------------------------------------------------------------------------

    def _op_hello(self, number: int, request: dict[str, Any]) -> None:
        if fields.number(request, "protocol") != messages.PROTOCOL:
            raise ProtocolError(f"this engine speaks protocol {messages.PROTOCOL}: restart it, or update the client")
        kind = fields.text(request, "client")
        if kind not in CLIENTS:
            raise ProtocolError(f"client: expected one of {', '.join(CLIENTS)}, got {kind[:80]!r}")
        self._engine.check_expected(fields.mapping(request, "expect"))
        self.kind = kind
        # Inside a container the kernel's word on the pid is another one than the client's own.
        self.pid = self.peer.pid or fields.number(request, "pid")
        self._answer(number, self._engine.introduction())

    def _op_open(self, number: int, request: dict[str, Any]) -> None:
        url, identity = fields.text(request, "url"), fields.mapping(request, "identity")
        listing = fields.flag(request, "list")
        validate = None if request.get("validate") is None else fields.text(request, "validate")
        publish = None if request.get("publish") is None else fields.text(request, "publish")
        if validate not in (None, "shard"):
            raise ProtocolError(f"validate: expected null or shard, got {validate[:80]!r}")
        if publish is not None and not (self.peer.is_master and os.path.isabs(publish)):
            raise EngineRefusedError("publish: an absolute path, and only for the engine's own user and root")

        async def work() -> None:
            source = await self._engine.sources.open(
                url, identity, listing=listing, shard_level=validate == "shard", publish=publish
            )
            if len(self._datasets) + len(source.datasets) > MAX_DATASETS:
                for dataset in source.datasets:
                    self._engine.sources.release(dataset)
                raise ProtocolError("too many datasets are open on one connection")
            pairs = zip(source.datasets, source.locals, strict=True)
            shown = [self._number(each, local, request["url"]) for each, local in pairs]
            self._answer(number, {"datasets": shown, "warnings": list(source.warnings)})

        self._run(number, work)

    def _number(self, dataset: Dataset, local: Callable[[str], Path | None] | None, url: str) -> dict[str, Any]:
        number = len(self._datasets) + 1
        self._datasets[number] = Opened(dataset, local, self._engine.max_window)
        info = dataset.folder.info
        return {
            "dataset": number,
            "prefix": _relative(dataset.url, url),
            "kind": info.kind,
            "files": len(dataset.tables.files),
            "shown_size": info.shown_size,
            "url": dataset.url,
            "mtime_ns": info.mtime_ns,
        }

    def _op_attach(self, number: int, request: dict[str, Any]) -> None:
        dataset = self._opened(request).dataset
        folder = dataset.folder
        paths = [folder.tables_path, folder.residency_path]
        if folder.info.kind == "mds":
            paths.append(folder.index_path)
        fds: list[int] = []
        try:
            fds.extend(os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in paths)
        except OSError as error:
            messages.close_fds(fds)
            raise StreamingError(f"the cache folder of {dataset.url} is damaged: {error}") from error
        self._answer(number, {}, fds)

    def _op_file(self, number: int, request: dict[str, Any]) -> None:
        opened, file = self._file(request)
        dataset = opened.dataset
        if (fd := opened.open_source(file)) is not None:
            self._answer(number, {"direct": True, "size": dataset.size(file)}, [fd])
            return
        # Whoever has the descriptor reads by the table alone: what an earlier engine left must have been checked.
        if dataset.checked[file] and not dataset.folder.is_replaced(file):
            self._answer_file(number, dataset, file)
            return

        async def work() -> None:
            await self._engine.fills.check(dataset, file)
            self._answer_file(number, dataset, file)

        self._run(number, work)

    def _answer_file(self, number: int, dataset: Dataset, file: int) -> None:
        try:
            fd = dataset.folder.read_fd(file)
        except (CacheFullError, CacheDirectoryError) as error:
            # The disk takes no new file. A stand-in of zeros will do, since nothing of it will ever be resident.
            self._engine.fills.disk.refused(error)
            dataset.working(file).outside = True
            fd = os.memfd_create("mdsfs-outside", os.MFD_CLOEXEC)
            os.ftruncate(fd, dataset.size(file))
        self._answer(number, {"direct": False, "size": dataset.size(file)}, [fd])

    def _op_want(self, number: int, request: dict[str, Any]) -> None:
        opened = self._opened(request)
        dataset = opened.dataset
        ranges = fields.triples(request, "ranges")
        handle = None if request.get("handle") is None else fields.number(request, "handle")
        timeout = fields.seconds(request, "timeout")
        files = len(dataset.tables.files)
        touched = fields.pairs(request, "touch")
        samples = fields.flag(request, "samples")
        if any(file >= files for file, _, _ in ranges) or any(file >= files for file, _ in touched):
            raise ProtocolError(f"file: expected 0 to {files - 1}")
        if len(self._claims) >= MAX_CLAIMS:
            raise ProtocolError(f"{MAX_CLAIMS} wants are held: send done for those that were read")
        for file, offset in touched:
            self._engine.cache.touch_resident(dataset, file, offset)
        self.activity.touched += len(touched)
        wanted = opened.cached(ranges)
        if wanted:
            self.activity.wants += 1
            self.activity.note(dataset, wanted)
        if (claim := self._engine.wants.claim_nowait(dataset, wanted, samples=samples)) is not None:
            self.activity.hits += bool(wanted)
            self._grant(number, claim)
            return

        async def want() -> None:
            around = opened.widened(self._engine, handle, wanted, samples=samples)
            await self._want(number, opened, around, timeout)

        self._run(number, want)

    async def _want(self, number: int, opened: Opened, wanted: list[WantedRange], patience: float) -> None:
        stall = self._engine.planning.waiting(opened.dataset, wanted, self.pid)
        with self.activity.wait(), stall, trio.move_on_after(patience):
            claim = await self._engine.wants.claim(opened.dataset, wanted)
            self._grant(number, claim)
            return
        raise ReadTimeoutError(f"not fetched within {patience:g} s: {named(opened.dataset, wanted)}")

    def _grant(self, number: int, claim: Claim) -> None:
        if (forgotten := self._claims.pop(number, None)) is not None:
            self._engine.wants.release(forgotten)
        self._claims[number] = claim
        message: dict[str, Any] = {"id": number}
        if claim.passed:
            message["direct"] = claim.passed
        fds = [parcel.fd for parcel in claim.parcels]
        self._connection.send(message, fds, lambda: self._engine.wants.sent(claim))

    def _done(self, request: dict[str, Any]) -> None:
        number = request.get("want")
        claim = self._claims.pop(number, None) if isinstance(number, int) else None
        if claim is not None:
            self._engine.wants.release(claim)

    def _ahead(self, request: dict[str, Any]) -> None:
        opened = self._opened(request)
        if self._engine.planning.covers(opened.dataset):
            return  # it knows better, and what is read when
        files = len(opened.dataset.tables.files)
        ranges = [each for each in fields.triples(request, "ranges") if each[0] < files]
        self._engine.ahead.add(opened.dataset, opened.cached(ranges))

    def _op_ahead(self, number: int, request: dict[str, Any]) -> None:
        self._ahead(request)
        self._answer(number, {})

    def _op_done(self, number: int, request: dict[str, Any]) -> None:
        self._done(request)
        self._answer(number, {})

    def _op_hint(self, number: int, request: dict[str, Any]) -> None:
        begun = Begun(
            fields.number(request, "epoch", most=LARGEST),
            fields.number(request, "drop", most=LARGEST),
            fields.triples(request, "at"),
        )
        document = map_sealed(self._connection.received_fd(), self._engine.hints.most_bytes)

        async def work() -> None:
            datasets = {which: (each.dataset, each.local) for which, each in self._datasets.items()}
            told, fds = await self.membership.hint(document, datasets, begun, self.pid, by_pages=self.kind == "mount")
            self._answer(number, told, fds)

        self._run(number, work)

    def _op_order(self, number: int, request: dict[str, Any]) -> None:
        job, epoch = fields.number(request, "job"), fields.number(request, "epoch")
        timeout = fields.seconds(request, "timeout")

        async def work() -> None:
            told, fds = await self.membership.order(job, epoch, timeout)
            self._answer(number, told, fds)

        self._run(number, work)

    def _op_position(self, number: int, request: dict[str, Any]) -> None:
        self._position(request)
        self._answer(number, {})

    def _op_retract(self, number: int, request: dict[str, Any]) -> None:
        self._retract(request)
        self._answer(number, {})

    def _position(self, request: dict[str, Any]) -> None:
        epoch = fields.number(request, "epoch", most=LARGEST)
        self.membership.move(fields.number(request, "job"), epoch, fields.triples(request, "at"))

    def _retract(self, request: dict[str, Any]) -> None:
        self.membership.retract(fields.number(request, "job"))

    def _op_state(self, number: int, request: dict[str, Any]) -> None:
        opened, file = self._file(request)
        self._answer(number, self._engine.file_state(opened.dataset, file))

    def _keep(self, number: int, request: dict[str, Any]) -> None:
        """What commands ask of the cache as a whole."""
        op = request["op"]
        if op != "files" and not self.peer.is_master:
            raise EngineRefusedError(f"{op}: only for the engine's own user and root")

        async def work() -> None:
            self._answer(number, *await ACTS[op](self._engine, request))

        self._run(number, work)

    def _op_register(self, number: int, request: dict[str, Any]) -> None:
        if len(self.mounts) >= MAX_DATASETS:
            raise ProtocolError("too many mounts are registered on one connection")
        self.mounts.append({"mountpoint": fields.text(request, "mountpoint"), "source": fields.text(request, "source")})
        self._answer(number, {})

    def _op_report(self, number: int, request: dict[str, Any]) -> None:
        self.activity.report(request)
        self._answer(number, {})

    def _op_status(self, number: int, request: dict[str, Any]) -> None:
        brief = fields.flag(request, "brief")
        self._run(number, lambda: self._status(number, brief=brief))

    async def _status(self, number: int, *, brief: bool) -> None:
        fd = os.memfd_create("mdsfs-status", os.MFD_CLOEXEC)
        with contextlib.ExitStack() as unsent:
            unsent.callback(os.close, fd)
            data = await self._engine.status_document(brief=brief)
            os.write(fd, data)
            unsent.pop_all()
        self._answer(number, {}, [fd])

    def _op_dismiss(self, number: int, request: dict[str, Any]) -> None:
        del request
        if not self.peer.is_master:
            raise EngineRefusedError("only the engine's own user and root may dismiss it")
        self._answer(number, {})
        if not any(each.has_open for each in self._engine.sessions if each is not self):
            self._engine.dismissed = True

    def _op_stop(self, number: int, request: dict[str, Any]) -> None:
        del request
        if not self.peer.is_master:
            raise EngineRefusedError("only the engine's own user and root may stop it")
        log.info("asked to stop by pid %d", self.pid)
        self._answer(number, {})
        self._engine.stop()


# What nobody waits for an answer to.
ONE_WAY: Mapping[str, Callable[[Session, dict[str, Any]], None]] = {
    "ahead": Session._ahead,
    "position": Session._position,
    "retract": Session._retract,
}


def _relative(url: str, source: str) -> str:
    """Where a dataset lies below the source that was asked for: its folder may be of one who opened it by itself."""
    return url.rstrip("/").removeprefix(source.rstrip("/")).strip("/")
