"""One engine, opened and attached: everything that ends when the connection ends.

A session holds what the engine gave for this connection alone (dataset numbers, residency tables, descriptors). The
next engine gives others: then a new session is made, and this one is thrown away as a whole, so that nothing stale
can be used by mistake.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import trio

from streaming.engine.residency import ResidencyReader
from streaming.errors import ObjectChangedError, ProtocolError
from streaming.mds.tables import DatasetTables, load_tables
from streaming.remote.options import RemoteOptions

from .cachefiles import CacheFile, CacheFiles

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .connection import Connection, Reply

__all__ = ["Attached", "Session", "SourceOptions", "open_session"]

# Opening may list a bucket and parse an index of a million shards; anything else is answered from memory.
OPEN_PATIENCE = 300.0
REPLY_PATIENCE = 30.0
# Even where descriptors are scarce, this many cache files stay open.
LEAST_FILES = 4


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """What is opened, and as whom."""

    url: str
    identity: dict[str, Any]
    validate: str | None = None
    mountpoint: str = ""


@dataclass(frozen=True, slots=True)
class Attached:
    """A dataset as this connection knows it."""

    number: int
    prefix: str
    kind: str
    mtime_ns: int
    tables: DatasetTables
    raw_tables: mmap.mmap
    residency: ResidencyReader
    index_fd: int | None


class Session:
    """An open connection with its datasets, in the order of the mount's own list."""

    def __init__(self, connection: Connection, datasets: Sequence[Attached], warnings: Sequence[str], fds: int) -> None:
        self.connection = connection
        self.warnings = tuple(warnings)
        self._all = tuple(datasets)
        self._datasets: list[Attached | None] = list(datasets)
        self.files = CacheFiles(fds, self._fetch_file)
        self.withdrawn = trio.Event()

    def __repr__(self) -> str:
        return f"Session({self.connection}, {len(self._datasets)} datasets, {self.files})"

    @property
    def attached(self) -> list[Attached]:
        """Every dataset that still is what it was."""
        return [dataset for dataset in self._datasets if dataset is not None]

    def dataset(self, which: int) -> Attached:
        """The dataset, unless its content is no longer what the mount shows."""
        found = self._datasets[which]
        if found is None:
            raise ObjectChangedError("the source is no longer what was mounted: unmount and mount it again")
        return found

    def arrange(self, known: Sequence[Attached]) -> None:
        """Put the datasets in the order of an earlier session; one whose tables differ is left out for good."""
        found = {(dataset.prefix, dataset.kind): dataset for dataset in self.attached}
        self._datasets = [_unchanged(found.get((each.prefix, each.kind)), each) for each in known]

    async def state(self, which: int, row: int) -> dict[str, Any]:
        """What the engine says about one file: state, level, resident bytes, source, hash."""
        number = self.dataset(which).number
        reply = await self.connection.request("state", patience=REPLY_PATIENCE, dataset=number, file=row)
        reply.close()
        return reply.message

    async def status(self, patience: float) -> bytes:
        """The engine's status document."""
        reply = await self.connection.request("status", patience=patience)
        with _Closing(reply, 1) as fds:
            return os.pread(fds[0], os.fstat(fds[0]).st_size, 0)

    def close(self, keep: Sequence[Attached] = ()) -> None:
        """Give back every descriptor but those of the datasets in `keep`. Maps go when nothing uses them any more."""
        self.connection.close()
        self.files.close()
        for dataset in self._all:
            if dataset.index_fd is not None and not any(dataset is kept for kept in keep):
                os.close(dataset.index_fd)

    async def _fetch_file(self, which: int, row: int) -> CacheFile:
        number = self.dataset(which).number
        reply = await self.connection.request("file", patience=REPLY_PATIENCE, dataset=number, file=row)
        with _Closing(reply, 1) as fds:
            return CacheFile(os.dup(fds[0]), bool(reply.message.get("direct")))


class _Closing:
    """The descriptors of a reply for the length of a block, refused where their number is not the expected one."""

    def __init__(self, reply: Reply, least: int) -> None:
        self._reply = reply
        self._least = least

    def __enter__(self) -> list[int]:
        if len(self._reply.fds) < self._least:
            self._reply.close()
            raise ProtocolError(f"the engine's answer has {len(self._reply.fds)} descriptors, expected {self._least}")
        return self._reply.fds

    def __exit__(self, *exc: object) -> None:
        self._reply.close()


def _unchanged(found: Attached | None, known: Attached) -> Attached | None:
    if found is None or found.raw_tables[:] != known.raw_tables[:]:
        return None
    return found


async def open_session(connection: Connection, source: SourceOptions, descriptors: int) -> Session:
    """Open the source on a fresh connection (hello was said) and attach everything in it."""
    reply = await connection.request(
        "open",
        patience=OPEN_PATIENCE,
        url=source.url,
        # anew, since the credentials on the disk may have been replaced while the mount lived
        identity=RemoteOptions.from_identity(source.identity).identity(source.url),
        list=True,
        validate=source.validate,
    )
    reply.close()
    attached = [await _attach(connection, described) for described in reply.message["datasets"]]
    if source.mountpoint:
        registered = await connection.request(
            "register", patience=REPLY_PATIENCE, mountpoint=source.mountpoint, source=source.url
        )
        registered.close()
    # Each dataset keeps its two maps and its index open.
    left = max(LEAST_FILES, descriptors - 3 * len(attached))
    return Session(connection, attached, reply.message.get("warnings", ()), left)


async def _attach(connection: Connection, described: dict[str, Any]) -> Attached:
    is_mds = described["kind"] == "mds"
    reply = await connection.request("attach", patience=REPLY_PATIENCE, dataset=described["dataset"])
    with _Closing(reply, 3 if is_mds else 2) as fds:
        raw_tables = mmap.mmap(fds[0], 0, prot=mmap.PROT_READ)
        raw_residency = mmap.mmap(fds[1], 0, prot=mmap.PROT_READ)
        index_fd = os.dup(fds[2]) if is_mds else None
    tables = load_tables(memoryview(raw_tables))
    sizes = np.ascontiguousarray(tables.files["size"])
    residency = ResidencyReader(raw_residency, tables.bitmap_at, sizes)
    await trio.lowlevel.checkpoint()
    return Attached(
        described["dataset"],
        described["prefix"],
        described["kind"],
        int(described["mtime_ns"]),
        tables,
        raw_tables,
        residency,
        index_fd,
    )
