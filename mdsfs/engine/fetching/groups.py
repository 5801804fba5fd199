"""A fetcher's side of a group: many small jobs over several objects, done beside each other by one thread.

What belongs to one job of the group is as in `fetch`; what is particular is that nothing is tried twice here. A part
that does not come at the first attempt, or whose bytes are wrong, is left out of the reports, and the engine gives it
to a fetcher as a job of its own, where retries and named errors are.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

from streaming.errors import StreamingError
from streaming.remote.interface import SmallRange

from ..store.disk import write_error
from .fetch import write_frames
from .jobs import FramesJob, pieces_to_wire
from .sink import CancelledError, pwrite_all

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from streaming.remote import Remote
    from streaming.remote.interface import ManyReader

    from .jobs import GroupJob, Part, Piece

__all__ = ["GroupSink", "do_group"]

# So many parts are told of at once, while others are still on their way.
TOLD_AT_ONCE = 16

Told = list[tuple[int, list[tuple[int, str]]]]  # parts that are written, and what else their frames hold


class GroupSink:
    """The files of a group. Written to by its own thread; fenced by another one, after which nothing is written."""

    def __init__(self, fds: Sequence[int]) -> None:
        """Takes over the descriptors."""
        self._fds = list(fds)
        self._lock = threading.Lock()
        self._fenced = False
        self._reader: ManyReader | None = None

    def __repr__(self) -> str:
        return f"GroupSink({len(self._fds)} files, fenced={self._fenced})"

    @property
    def fenced(self) -> bool:
        """Whether `fence` was called."""
        return self._fenced

    def write(self, file: int, data: memoryview, at: int) -> None:
        """Write all of it into one of the files; raises CancelledError once fenced, CacheFullError on a full disk."""
        with self._lock:
            if self._fenced:
                raise CancelledError
            try:
                pwrite_all(self._fds[file], data, at)
            except OSError as error:
                raise write_error(error, os.readlink(f"/proc/self/fd/{self._fds[file]}")) from error

    def watch(self, reader: ManyReader) -> None:
        """A fence ends this reader from now on."""
        with self._lock:
            if self._fenced:
                raise CancelledError
            self._reader = reader

    def fence(self) -> None:
        """From here on nothing is written; the descriptors are closed."""
        with self._lock:
            self._fenced = True
            reader = self._reader
        if reader is not None:
            reader.cancel()
        self.close()

    def close(self) -> None:
        """Close the descriptors."""
        with self._lock:
            while self._fds:
                os.close(self._fds.pop())


class _PartSink:
    """One file of a group, as what writes frames knows it: neighbouring pieces are written at once, by `end`."""

    __slots__ = ("_at", "_file", "_pieces", "_sink", "_stop")

    def __init__(self, sink: GroupSink, file: int) -> None:
        self._sink, self._file = sink, file
        self._pieces: list[memoryview] = []
        self._at = self._stop = 0

    def write(self, data: memoryview, at: int) -> None:
        """Write all of it, now or at the next piece that lies elsewhere."""
        if at != self._stop:
            self.end()
            self._at = self._stop = at
        self._pieces.append(data)
        self._stop += len(data)

    def end(self) -> None:
        """Write what is left."""
        if self._pieces:
            whole = self._pieces[0] if len(self._pieces) == 1 else memoryview(b"".join(self._pieces))
            self._pieces = []
            self._sink.write(self._file, whole, self._at)


def _write_part(part: Part, job: FramesJob, stored: memoryview, sink: GroupSink) -> tuple[Piece, ...]:
    joined = _PartSink(sink, part.file)
    edges = write_frames(job, stored, joined)
    joined.end()
    return edges


def do_group(job: GroupJob, remote: Remote, sink: GroupSink, report: Callable[[Told], None]) -> dict[str, Any]:
    """Do a group; `report` hears of parts as they are written. What the end of the group says beside the last ones."""
    told: Told = []
    received = 0
    asking: list[int] = []
    wanted: list[SmallRange] = []

    def done(number: int, edges: tuple[Piece, ...]) -> None:
        told.append((job.parts[number].number, pieces_to_wire(edges)))
        if len(told) >= TOLD_AT_ONCE:
            report(told)
            told.clear()

    def taken(place: int, data: memoryview) -> None:
        nonlocal received
        received += len(data)
        number = asking[place]
        part = job.parts[number]
        if not isinstance(part.job, FramesJob):
            sink.write(part.file, data, part.job.at)
            done(number, ())
            return
        try:
            edges = _write_part(part, part.job, data, sink)
        except StreamingError:
            return  # wrong bytes: it is fetched again by itself, and told of if they stay wrong
        done(number, edges)

    for number, part in enumerate(job.parts):
        if isinstance(part.job, FramesJob) and not part.job.frames:
            done(number, _write_part(part, part.job, memoryview(b""), sink))
            continue
        start, stop = part.job.stored_range
        asking.append(number)
        assert part.job.etag is not None
        wanted.append(SmallRange(part.job.key, start, stop, part.job.etag, part.job.size))
    reader = remote.read_many(wanted, taken)
    sink.watch(reader)
    reader.run()
    quickest = reader.quickest if wanted and reader.quickest < float("inf") else None
    return {"parts": told, "bytes": received, "quickest": quickest}
