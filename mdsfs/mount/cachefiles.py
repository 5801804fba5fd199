"""Open cache files of one connection, and reading them without ever making the event loop wait for a disk.

Owns the descriptors that the engine has handed out: an LRU within what the process may have open. A file that is
being read in a thread while it is pushed out is closed when that read ends.
"""

from __future__ import annotations

import errno
import os
import resource
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import cachetools
import trio

from streaming.errors import EngineUnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["CacheFile", "CacheFiles", "pread_exactly", "pread_nowait", "raise_descriptor_limit"]

# Disk reads that may be under way at once. They have threads of their own: trio's default limiter is shared with
# everything else.
DISK_THREADS = 32
# Descriptors kept free for sockets, tables, pipes and threads.
_RESERVED_DESCRIPTORS = 128


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files to the hard one and return how many cache files fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    limit = 1 << 20 if hard == resource.RLIM_INFINITY else hard
    return max(16, limit - _RESERVED_DESCRIPTORS)


@dataclass(slots=True, eq=False)
class CacheFile:
    """One cache file, or a source's own file (`direct`: all of it is there)."""

    fd: int
    direct: bool
    users: int = 0
    dropped: bool = False

    def drop(self) -> None:
        """Close it as soon as nobody reads it."""
        self.dropped = True
        if not self.users and self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        self.users += 1
        return self

    def __exit__(self, *exc: object) -> None:
        self.users -= 1
        if self.dropped:
            self.drop()


class _Dropping(cachetools.LRUCache[tuple[int, int], CacheFile]):
    def popitem(self) -> tuple[tuple[int, int], CacheFile]:
        key, file = super().popitem()
        file.drop()
        return key, file


class CacheFiles:
    """The open files of one connection, by (dataset, row)."""

    def __init__(self, limit: int, fetch: Callable[[int, int], Awaitable[CacheFile]]) -> None:
        self._open = _Dropping(limit)
        self._fetch = fetch
        self._coming: dict[tuple[int, int], trio.Event] = {}
        self._limiter = trio.CapacityLimiter(DISK_THREADS)
        self._closed = False

    def __repr__(self) -> str:
        return f"CacheFiles({len(self._open)} open)"

    def get_nowait(self, dataset: int, row: int) -> CacheFile | None:
        """The file if it is open already."""
        return self._open.get((dataset, row))

    async def get(self, dataset: int, row: int) -> CacheFile:
        """The file, asked of the engine where it is not open; many askers make one request."""
        key = dataset, row
        while (file := self._open.get(key)) is None:
            if (event := self._coming.get(key)) is not None:
                await event.wait()
                continue
            event = self._coming[key] = trio.Event()
            try:
                file = await self._fetch(dataset, row)
                if self._closed:
                    file.drop()
                    raise EngineUnavailableError("the connection to the engine ended")
                self._open[key] = file
                return file
            finally:
                del self._coming[key]
                event.set()
        return file

    async def pread(self, file: CacheFile, offset: int, size: int) -> memoryview:
        """Exactly `size` bytes, fewer only at the end of the file; in a thread. The caller is a user of the file."""
        return await trio.to_thread.run_sync(pread_exactly, file.fd, offset, size, limiter=self._limiter)

    def close(self) -> None:
        """Close everything; files in use are closed when their reads end."""
        self._closed = True
        while self._open:
            self._open.popitem()


def pread_exactly(fd: int, offset: int, size: int) -> memoryview:
    """`size` bytes from `offset`, fewer only at the end of the file."""
    view = memoryview(bytearray(size))
    done = 0
    while done < size:
        count = os.preadv(fd, [view[done:]], offset + done)
        if not count:
            break
        done += count
    return view[:done]


def pread_nowait(fd: int, offset: int, into: memoryview) -> bool:
    """Fill `into` from pages in memory; False where that would have to wait for the disk.

    A filesystem that does not know the question (tmpfs) has everything in memory: the plain read is the same there.
    """
    try:
        return os.preadv(fd, [into], offset, os.RWF_NOWAIT) == len(into)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            return False
        if error.errno == errno.EOPNOTSUPP:
            return os.preadv(fd, [into], offset) == len(into)
        raise
