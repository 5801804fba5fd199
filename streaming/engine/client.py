"""A synchronous client of an engine: one method per operation.

Dataset numbers, tables and descriptors of a dead engine are void: `EngineUnavailableError` tells the caller to start
over from `connect`, which starts an engine where none runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from streaming.errors import (
    EngineRefusedError,
    EngineUnavailableError,
    ProtocolError,
)

from . import messages
from .address import prepare_runtime_directory, socket_path
from .answers import Attached, DirectBytes, Hinted, HintedOrder, OpenedDataset, OpenedFile, Source, Wanted, hinted_order
from .exchange import REPLY_TIMEOUT, Exchange
from .spawn import START_TIMEOUT, EngineOptions, spawn_engine

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from types import TracebackType

__all__ = [
    "Attached",
    "DirectBytes",
    "EngineClient",
    "Hinted",
    "HintedOrder",
    "OpenedDataset",
    "OpenedFile",
    "Source",
    "Wanted",
]

# Opening may list a bucket and parse an index of a million shards; anything else is answered from memory.
OPEN_TIMEOUT = 300.0
# The engine answers a `want` at its deadline; this long after it the engine itself is stuck.
GRACE = 5.0

Range = tuple[int, int, int]
Place = tuple[int, int, int]


class EngineClient:
    """One connection to an engine."""

    def __init__(self, sock: socket.socket) -> None:
        """Takes over a connected socket; `at_socket` and `connect` are the usual doors."""
        self.exchange = Exchange(sock)
        self.engine: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"EngineClient(engine {self.engine.get('pid')}, {self.exchange})"

    # ---- connecting --------------------------------------------------------------------------------------------------

    @classmethod
    def at_socket(
        cls, path: str | os.PathLike[str], *, client: str = "reader", expect: dict[str, Any] | None = None
    ) -> EngineClient:
        """Connect to the engine that listens there; raises EngineUnavailableError where none does."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        sock.settimeout(REPLY_TIMEOUT)
        try:
            sock.connect(os.fspath(path))
        except PermissionError as error:
            sock.close()
            raise EngineRefusedError(
                f"the engine at {path} serves its own user only: start it with --allow-other"
            ) from error
        except OSError as error:
            sock.close()
            raise EngineUnavailableError(f"no engine answers at {path}: {error.strerror or error}") from error
        self = cls(sock)
        try:
            self.engine = self.hello(client, expect)
        except BaseException:
            self.close()
            raise
        return self

    @classmethod
    def connect(
        cls, cache_dir: str | os.PathLike[str], spawn: EngineOptions | None = None, *, client: str = "reader"
    ) -> EngineClient:
        """Connect to the engine of a cache directory, starting it with these options where none runs.

        However many processes call this at once, one engine starts and all get it. An engine that runs with other
        options than were chosen is an EngineRefusedError.
        """
        expect = spawn.expect() if spawn else None
        if spawn is not None:
            _make_cache_directory(cache_dir)
        path = _existing_socket(cache_dir)
        with contextlib.suppress(EngineUnavailableError):
            return cls.at_socket(path, client=client, expect=expect)
        if spawn is None:
            raise EngineUnavailableError(
                f"no engine runs for {cache_dir}: start one with mdsfs engine --cache-dir {cache_dir}"
            )
        with _starting(cache_dir):
            return cls._connect_or_spawn(path, spawn, client)

    @classmethod
    def _connect_or_spawn(cls, path: Path, spawn: EngineOptions, client: str) -> EngineClient:
        deadline = time.monotonic() + START_TIMEOUT
        # An engine started by hand may hold the directory and not listen yet, or be on its way out: neither can be
        # waited for other than by trying again.
        for pause in itertools.chain((0.05, 0.1, 0.2), itertools.repeat(0.5)):
            try:
                return cls.at_socket(path, client=client, expect=spawn.expect())
            except EngineUnavailableError:
                try:
                    spawn_engine(spawn)
                    continue
                except EngineRefusedError:
                    if time.monotonic() > deadline:
                        raise
            time.sleep(pause)
        raise AssertionError("unreachable")  # pragma: no cover

    def close(self) -> None:
        """End the connection; everything claimed over it ends with it, and open requests fail."""
        self.exchange.close()

    @property
    def closed(self) -> bool:
        """Whether the connection is gone: closed, broken, or left behind in the parent of this process."""
        return self.exchange.closed

    def is_alive(self) -> bool:
        """Whether the engine is still at the other end, hence whether what it holds for us is still held."""
        return self.exchange.is_alive()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- operations --------------------------------------------------------------------------------------------------

    def hello(self, client: str, expect: dict[str, Any] | None = None) -> dict[str, Any]:
        """Introduce this process; the answer tells the engine's pid, version, cache directory and options."""
        message: dict[str, Any] = {"op": "hello", "protocol": messages.PROTOCOL, "client": client, "pid": os.getpid()}
        if expect:
            message["expect"] = expect
        reply, _ = self.exchange.call(message)
        return reply

    def open(
        self,
        url: str,
        identity: dict[str, Any],
        *,
        list: bool = False,
        validate: str | None = None,
        publish: str | None = None,
        timeout: float = OPEN_TIMEOUT,
    ) -> Source:
        """Open a source: its dataset, or with `list` all that lies under it."""
        message = {
            "op": "open",
            "url": url,
            "identity": identity,
            "list": list,
            "validate": validate,
            "publish": publish,
        }
        reply, _ = self.exchange.call(message, timeout)
        datasets = tuple(
            OpenedDataset(**{name: each[name] for name in OpenedDataset.__slots__}) for each in reply["datasets"]
        )
        return Source(datasets, tuple(reply["warnings"]))

    def attach(self, dataset: int) -> Attached:
        """The tables, the residency table and the shown index of a dataset, as descriptors to map."""
        _, fds = self.exchange.call({"op": "attach", "dataset": dataset}, fds=(2, 3))
        return Attached(fds[0], fds[1], fds[2] if len(fds) > 2 else None)

    def file(self, dataset: int, file: int) -> OpenedFile:
        """The cache file of a file, or the source's own where it lies on a local disk."""
        reply, fds = self.exchange.call({"op": "file", "dataset": dataset, "file": file}, fds=(1, 1))
        return OpenedFile(fds[0], int(reply["size"]), bool(reply["direct"]))

    def want(
        self,
        dataset: int,
        ranges: Sequence[Range],
        *,
        samples: bool = False,
        handle: int | None = None,
        timeout: float = 60.0,
        touch: Iterable[tuple[int, int]] = (),
    ) -> Wanted:
        """Wait until the ranges can be read. Afterwards they stay, until `done` with the answer's id.

        `samples`: each range is one sample, exactly.
        """
        message = {
            "op": "want",
            "dataset": dataset,
            "ranges": ranges,
            "samples": samples,
            "handle": handle,
            "timeout": timeout,
            "touch": [*touch],
        }
        reply, fds = self.exchange.call(message, timeout + GRACE, fds=(0, messages.MAX_FDS))
        try:
            direct = tuple(DirectBytes(file, at, length, fds[n]) for file, at, length, n in reply.get("direct", ()))
        except (IndexError, TypeError, ValueError) as error:
            messages.close_fds(fds)
            raise ProtocolError("the engine's answer to a want makes no sense") from error
        return Wanted(int(reply["id"]), direct)

    def ahead(self, dataset: int, ranges: Sequence[Range]) -> None:
        """Say what will be read soon, in order; returns at once. Advice: a connection that is gone loses it."""
        self.exchange.tell({"op": "ahead", "dataset": dataset, "ranges": ranges})

    def hint(
        self, document: int, epoch: int, drop: int, places: Sequence[Place], timeout: float = REPLY_TIMEOUT
    ) -> Hinted:
        """Say what will be read: a sealed memfd of HINT.md, the epoch that begins, samples of the whole world that are
        behind it, and the (rank here, worker, batch) that this process is about to read."""
        message = {"op": "hint", "epoch": epoch, "drop": drop, "at": places}
        reply, fds = self.exchange.call(message, timeout, send=[document], fds=(0, 1))
        return Hinted(int(reply["job"]), bool(reply["planned"]), hinted_order(reply, fds))

    def order(self, job: int, epoch: int, timeout: float) -> HintedOrder:
        """The order of an epoch of a hinted job; waits until it is computed. Raises what keeps it from that."""
        message = {"op": "order", "job": job, "epoch": epoch, "timeout": timeout}
        reply, fds = self.exchange.call(message, timeout + GRACE, fds=(1, 1))
        found = hinted_order(reply, fds)
        if found is None:
            raise ProtocolError("the engine's answer has no order")
        return found

    def position(self, job: int, epoch: int, places: Sequence[Place]) -> bool:
        """Say which (rank here, worker, batch) will be read next; never waits. False where nothing could be said."""
        message = {"op": "position", "job": job, "epoch": epoch, "at": places}
        return self.exchange.tell_at_once(message)

    def retract(self, job: int) -> None:
        """Say that nothing more will be read of a job; never waits."""
        self.exchange.tell_at_once({"op": "retract", "job": job})

    def done(self, wanted: Wanted | int) -> None:
        """Let go of what an answered `want` holds. A connection that is gone has let go already."""
        number = wanted if isinstance(wanted, int) else wanted.id
        self.exchange.tell({"op": "done", "want": number})

    @contextlib.contextmanager
    def held(self, dataset: int, ranges: Sequence[Range], **options: Any) -> Iterator[Wanted]:
        """`want` for the length of a with block."""
        wanted = self.want(dataset, ranges, **options)
        try:
            yield wanted
        finally:
            wanted.close()
            self.done(wanted)

    def state(self, dataset: int, file: int) -> dict[str, Any]:
        """How much of a file is there, and how far it was verified."""
        return self.exchange.call({"op": "state", "dataset": dataset, "file": file})[0]

    def register(self, mountpoint: str, source: str) -> None:
        """Have a mount shown in status for as long as this connection lives."""
        self.exchange.call({"op": "register", "mountpoint": mountpoint, "source": source})

    def status(self, *, brief: bool = False) -> bytes:
        """The status document (JSON); `brief`: without what would have to be measured on the disk."""
        _, fds = self.exchange.call({"op": "status", "brief": brief}, fds=(1, 1))
        try:
            return os.pread(fds[0], os.fstat(fds[0]).st_size, 0)
        finally:
            os.close(fds[0])

    def ask(
        self, op: str, *, fds: tuple[int, int] = (0, 0), timeout: float = REPLY_TIMEOUT, **fields: Any
    ) -> tuple[dict[str, Any], list[int]]:
        """An operation of PROTOCOL.md that has no method here: its answer, and as many descriptors as `fds` allows.

        The descriptors are the caller's.
        """
        return self.exchange.call({"op": op, **fields}, timeout, fds=fds)

    def stop(self) -> None:
        """Ask the engine to end."""
        self.exchange.call({"op": "stop"})


def _make_cache_directory(cache_dir: str | os.PathLike[str]) -> None:
    # The engine checks it; it only has to exist for the socket's name.
    with contextlib.suppress(OSError):
        Path(cache_dir).mkdir(mode=0o700, parents=True, exist_ok=True)


def _existing_socket(cache_dir: str | os.PathLike[str]) -> Path:
    try:
        return socket_path(cache_dir)
    except OSError as error:
        raise EngineUnavailableError(f"no cache directory at {cache_dir}: {error.strerror}") from error


@contextlib.contextmanager
def _starting(cache_dir: str | os.PathLike[str]) -> Iterator[None]:
    """One starter at a time per cache directory; the others wait here and then find the engine."""
    prepare_runtime_directory()
    fd = os.open(cache_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # itself the lock: no file is left behind
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
