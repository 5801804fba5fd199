"""Where a job's bytes go: a descriptor, a report now and then, and a fence.

After `fence` has returned not one more byte is written, even if the job's thread is still stuck in a read: that is what
lets the engine give the room to somebody else at once.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from typing import TYPE_CHECKING, Protocol

from ..store.disk import write_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["CancelledError", "Sink", "pwrite_all", "splice_all"]

BLOCK = 4096
# A report costs the engine some 50 µs: at least this much, and, when more keeps coming, at least this long apart. Where
# a part of the usual size arrives faster than that, its end is the only report.
REPORT_BYTES = 1 << 20
REPORT_SECONDS = 0.1
# One write, hence one piece of page cache. On virtual machines whose hypervisor takes back what is free in large pieces
# of memory, writes of 128 KiB and more cost ten times as much; elsewhere the smaller ones cost nothing.
WRITE = 64 << 10
# The kernel lets one thread write a file at a time, and those who wait for it spin: they wait here instead, asleep.
# Striped by inode, so that nothing has to be kept per file; two files on one stripe merely take turns.
_WRITING = tuple(threading.Lock() for _ in range(64))


def pwrite_all(fd: int, data: memoryview, at: int) -> None:
    """Write all of it."""
    while data:
        written = os.pwrite(fd, data[:WRITE], at)
        data, at = data[written:], at + written


def splice_all(pipe: int, fd: int, count: int, at: int) -> None:
    """Write so many bytes of a pipe."""
    while count:
        try:
            written = os.splice(pipe, fd, count, offset_dst=at)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            data = os.read(pipe, count)  # a filesystem that knows no splice
            pwrite_all(fd, memoryview(data), at)
            written = len(data)
        count, at = count - written, at + written


class CancelledError(Exception):
    """Nobody wants this job's bytes any more."""


class _Cancellable(Protocol):
    def cancel(self) -> None: ...


class Sink:
    """One job's output. Written to by the job's own thread; fenced by another."""

    def __init__(self, fd: int, report: Callable[[list[tuple[int, int]], str | None], None]) -> None:
        """Takes over the descriptor (-1: none). `report` gets extents, or the version as soon as it is known."""
        self._fd = fd
        self._report = report
        self._lock = threading.Lock()
        self._writing = _WRITING[os.fstat(fd).st_ino % len(_WRITING) if fd >= 0 else 0]
        self._readers: list[_Cancellable] = []
        self._fenced = False
        self._enough = False
        self._start = self._stop = 0
        self._last = time.monotonic()

    def __repr__(self) -> str:
        return f"Sink(fd={self._fd}, pending={self._start}:{self._stop}, fenced={self._fenced})"

    def seen(self, etag: str | None) -> None:
        """The store named a version: those who wait to ask for it need not wait for bytes as well."""
        if etag is not None:
            self._report([], etag)

    def write(self, data: memoryview, at: int) -> None:
        """Write all of it; raises CancelledError once fenced, CacheFullError on a full disk."""
        self._write(len(data), at, lambda: pwrite_all(self._fd, data, at))

    def write_from(self, pipe: int, count: int, at: int) -> None:
        """The same with so many bytes that are in a pipe. After an error some of them may still be there."""
        self._write(count, at, lambda: splice_all(pipe, self._fd, count, at))

    def _write(self, count: int, at: int, write: Callable[[], None]) -> None:
        with self._lock:
            if self._fenced:
                raise CancelledError
            try:
                with self._writing:
                    write()
            except OSError as error:
                raise write_error(error, os.readlink(f"/proc/self/fd/{self._fd}")) from error
        if at != self._stop:
            self._send(self._stop)
            self._start = at
        self._stop = at + count
        done = self._stop // BLOCK * BLOCK
        if done - self._start >= REPORT_BYTES and time.monotonic() - self._last >= REPORT_SECONDS:
            self._send(done)

    def rest(self) -> list[tuple[int, int]]:
        """What was written and not reported: it travels with the end of the job."""
        return [(self._start, self._stop - self._start)] if self._stop > self._start else []

    def _send(self, upto: int) -> None:
        if upto > self._start:
            self._report([(self._start, upto - self._start)], None)
            self._start = upto
            self._last = time.monotonic()

    def read(self, buffer: memoryview) -> int:
        """`pread` of the file itself from the position of the last read (a HashJob's way)."""
        with self._lock:
            if self._fenced:
                raise CancelledError
            got = os.preadv(self._fd, [buffer], self._stop)
        self._start = self._stop = self._stop + got
        return got

    def size(self) -> int:
        """The file's size."""
        return os.fstat(self._fd).st_size

    @contextlib.contextmanager
    def watching(self, reader: _Cancellable) -> Iterator[None]:
        """While the block runs, a fence ends what the reader waits for; after one it does not begin."""
        with self._lock:
            if self._fenced or self._enough:
                raise CancelledError
            self._readers.append(reader)
        try:
            yield
        finally:
            with self._lock:
                self._readers.remove(reader)

    def fence(self) -> None:
        """From here on nothing is written; the descriptor is closed, and blocked reads end soon."""
        with self._lock:
            self._fenced = True
            self._close()
        self.stop_reading()

    def stop_reading(self) -> None:
        """Nothing more needs to be read: ends the reads of others that are still under way."""
        with self._lock:
            self._enough = True
            readers = list(self._readers)
        for reader in readers:
            reader.cancel()

    @property
    def fenced(self) -> bool:
        """Whether `fence` was called."""
        return self._fenced

    def close(self) -> None:
        """Close the descriptor."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
