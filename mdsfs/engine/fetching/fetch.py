"""The doing of each job: get, check, decompress, check, write. One function per kind, over a remote and a sink.

Runs in the fetchers' threads; knows nothing of processes and messages. Everything big happens in calls that let go of
the GIL, in pieces that a thread's own two buffers hold; what a thread needs beside them is one frame of a seekable
object, stored and raw.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, assert_never

from streaming.engine.residency import BLOCK
from streaming.errors import DatasetError, MissingDependencyError, ShardCorruptError
from streaming.mds.compression import open_decompressor
from streaming.mds.hashing import Hash, new_hash
from streaming.mds.seekable import TAIL_SIZE, SeekTable, decompress_frame, table_size

from .jobs import SMALL, FramesJob, HashJob, JobResult, Piece, ProbeJob, RangeJob, SingleJob, StreamJob
from .parts import ObjectParts, fill

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from streaming.remote import RangeReader, Remote

    from .jobs import Frame
    from .parts import Helpers
    from .sink import Sink

__all__ = ["PIECE", "Desk", "do", "write_frames"]

# Large enough that a call costs nothing beside its bytes, small enough for them to be in the L2 cache when written.
PIECE = 512 << 10
# Bytes that are written as they were received go through a pipe, past this process: a fifth less CPU than by a buffer.
PIPE = 1 << 20
LEAST_SPLICED = 64 << 10


class _Writable(Protocol):
    def write(self, data: memoryview, at: int) -> None: ...


class Desk:
    """What a thread works with: its two buffers, and the helpers that it shares with the others.

    A thread for small jobs needs one buffer only, of their size.
    """

    def __init__(self, helpers: Helpers, *, small: bool = False) -> None:
        self.helpers = helpers
        self.stored = memoryview(bytearray(SMALL if small else PIECE))
        self.raw = memoryview(bytearray(0 if small else PIECE))
        # pipes of the many threads for small jobs would exceed what a user may have
        self.splices = not small
        self._pipe: tuple[int, int] | None = None

    def pipe(self) -> tuple[int, int]:
        """An empty pipe for PIPE bytes, or fewer where this user has many: (read end, write end)."""
        if self._pipe is None:
            self._pipe = os.pipe2(os.O_CLOEXEC)
            with contextlib.suppress(OSError):
                fcntl.fcntl(self._pipe[1], fcntl.F_SETPIPE_SZ, PIPE)
        return self._pipe

    def drop_pipe(self) -> None:
        """Something may be left in the pipe: the next one will be another."""
        if self._pipe is not None:
            for fd in self._pipe:
                os.close(fd)
            self._pipe = None


@dataclass(frozen=True, slots=True)
class Done:
    """A finished job: its result, and for a ProbeJob the bytes of the seek table."""

    result: JobResult
    table: bytes | None = None


def do(job: SingleJob, remote: Remote | None, sink: Sink, desk: Desk) -> Done:
    """Do a job. Raises an error of streaming.errors that names the object, or CancelledError once fenced."""
    try:
        if isinstance(job, HashJob):
            return Done(_hash(job, sink, desk))
        assert remote is not None
        match job:
            case RangeJob():
                return Done(_range(job, remote, sink, desk))
            case FramesJob():
                return Done(_frames(job, remote, sink, desk))
            case StreamJob():
                return Done(_stream(job, remote, sink, desk))
            case ProbeJob():
                return _probe(job, remote)
            case _:
                assert_never(job)
    except DatasetError as error:
        # What the format's modules raise does not know whose bytes they were.
        raise error if job.key in str(error) else type(error)(f"{job.key}: {error}") from error


def _range(job: RangeJob, remote: Remote, sink: Sink, desk: Desk) -> JobResult:
    left, at = job.stop - job.start, job.at
    with (
        remote.open_range(job.key, job.start, job.stop, etag=job.etag, size=job.size) as reader,
        sink.watching(reader),
    ):
        while left:
            got, write = _some(reader, min(left, PIPE), sink, desk)
            if not got:
                raise ShardCorruptError(f"the store ended {left} bytes early")
            if job.etag is None and at == job.at:
                sink.seen(reader.etag)
            write(at)
            at, left = at + got, left - got
        return JobResult(etag=reader.etag, size=reader.size, bytes=job.stop - job.start)


def _some(reader: RangeReader, most: int, sink: Sink, desk: Desk) -> tuple[int, Callable[[int], None]]:
    """The next bytes of a range: how many, and how they are written at a place in the file."""
    if desk.splices and most >= LEAST_SPLICED:
        try:
            read_end, write_end = desk.pipe()
            if (spliced := reader.splice(write_end, most)) is not None:
                return spliced, lambda at: _write_spliced(desk, sink, read_end, spliced, at)
        except BaseException:
            desk.drop_pipe()
            raise
    got = fill(reader, desk.stored[:most])
    return got, lambda at: sink.write(desk.stored[:got], at)


def _write_spliced(desk: Desk, sink: Sink, pipe: int, count: int, at: int) -> None:
    try:
        sink.write_from(pipe, count, at)
    except BaseException:
        desk.drop_pipe()
        raise


def _frames(job: FramesJob, remote: Remote, sink: Sink, desk: Desk) -> JobResult:
    if not job.frames:
        _patch(job, sink, 0, None)
        return JobResult(etag=job.etag, size=job.size)
    start, stop = job.stored_range
    writing = _Frames(job, sink)
    with remote.open_range(job.key, start, stop, etag=job.etag, size=job.size) as reader, sink.watching(reader):
        for number, frame in enumerate(job.frames):
            stored = desk.stored if frame.zip_len <= len(desk.stored) else memoryview(bytearray(frame.zip_len))
            if fill(reader, stored[: frame.zip_len]) != frame.zip_len:
                raise ShardCorruptError(f"the store ended inside the frame at {frame.zip_off}")
            if job.etag is None and not number:
                sink.seen(reader.etag)
            writing.take(frame, stored[: frame.zip_len])
        return JobResult(etag=reader.etag, size=reader.size, bytes=stop - start, edges=writing.end())


def write_frames(job: FramesJob, stored: memoryview, sink: _Writable) -> tuple[Piece, ...]:
    """All that a job asks for, from the stored bytes of its frames; the result are their edges."""
    if not job.frames:
        _patch(job, sink, 0, None)
        return ()
    writing, start = _Frames(job, sink), job.stored_range[0]
    for frame in job.frames:
        writing.take(frame, stored[frame.zip_off - start : frame.zip_off - start + frame.zip_len])
    return writing.end()


class _Frames:
    """The writing of a job's frames, one after another, and of the patches around them."""

    def __init__(self, job: FramesJob, sink: _Writable) -> None:
        self._job, self._sink = job, sink
        self._low, high = job.frames[0].raw_off, job.frames[-1].raw_off + job.frames[-1].raw_len
        self._clip = job.clip or (0, high)
        self._edges = _Edges(self._low, high, self._clip)
        _patch(job, sink, 0, self._low)

    def take(self, frame: Frame, stored: memoryview) -> None:
        """The next frame."""
        raw = memoryview(decompress_frame(stored, frame.raw_len, frame.checksum))
        _write_clipped(self._sink, raw, frame.raw_off, self._clip, self._job.at_shift)
        self._edges.see(raw, frame.raw_off)

    def end(self) -> tuple[Piece, ...]:
        """After the last one: what they hold of blocks that they share with others."""
        _patch(self._job, self._sink, self._low, None)
        return self._edges.found()


def _patch(job: FramesJob, sink: _Writable, low: int, high: int | None) -> None:
    """Write the patches that begin in a range of the file."""
    for at, data in job.patches:
        if low <= at and (high is None or at < high):
            sink.write(memoryview(data), at - job.at_shift)


class _Edges:
    """Collects what frames hold of blocks that they share with others, where the clip leaves it out."""

    def __init__(self, low: int, high: int, clip: tuple[int, int]) -> None:
        inside = min(-(-low // BLOCK) * BLOCK, high)
        last = max(high // BLOCK * BLOCK, low)
        self._ranges: list[tuple[int, int]] = []
        if low < inside <= clip[0]:
            self._ranges.append((low, inside))
        if clip[1] <= last < high and (last, high) not in self._ranges:
            self._ranges.append((last, high))
        self._found = [bytearray() for _ in self._ranges]

    def see(self, raw: memoryview, at: int) -> None:
        """The next frame's bytes."""
        for (begin, end), found in zip(self._ranges, self._found, strict=True):
            found += raw[max(begin - at, 0) : max(end - at, 0)]

    def found(self) -> tuple[Piece, ...]:
        """What was collected."""
        return tuple((begin, bytes(found)) for (begin, _), found in zip(self._ranges, self._found, strict=True))


def _write_clipped(sink: _Writable, data: memoryview, at: int, clip: tuple[int, int], shift: int) -> None:
    begin, end = max(at, clip[0]), min(at + len(data), clip[1])
    if begin < end:
        sink.write(data[begin - at : end - at], begin - shift)


def _probe(job: ProbeJob, remote: Remote) -> Done:
    tail, info = remote.read(job.key, start=max(0, job.stored - TAIL_SIZE), stop=job.stored, etag=job.etag)
    if info.size != job.stored:
        raise ShardCorruptError(f"expected a stored object of {job.stored} bytes, got one of {info.size}")
    received, length = len(tail), table_size(tail)
    result = JobResult(etag=info.etag, size=info.size, bytes=received)
    if length is None:
        return Done(result)
    if len(tail) < length <= job.stored:
        tail, _ = remote.read(job.key, start=job.stored - length, stop=job.stored, etag=job.etag or info.etag)
        result = replace(result, bytes=received + length)
    SeekTable.parse(tail, job.stored)
    return Done(result, tail[-length:])


# ---- whole objects ---------------------------------------------------------------------------------------------------


def _stream(job: StreamJob, remote: Remote, sink: Sink, desk: Desk) -> JobResult:
    parts = ObjectParts(remote, job.key, job.etag, job.stored, helpers=desk.helpers, sink=sink, buffer=desk.stored)
    stored = _Stored(parts, job.zip_hashes if job.clip is None else {})
    raw_hashes = _Hashes(job.raw_hashes, own=job.own_hash) if job.clip is None else _Hashes({})
    try:
        if job.size:
            _copy(job, stored, sink, desk, raw_hashes)
        if job.clip is None:
            stored.check_end()
            raw_hashes.check("the raw bytes")
    finally:
        stored.close()
    checked = bool(job.zip_hashes or job.raw_hashes) and job.clip is None
    return JobResult(
        etag=parts.etag,
        size=parts.size,
        bytes=stored.taken,
        hashes_ok=True if checked else None,
        own_hash=raw_hashes.own(),
    )


def _copy(job: StreamJob, stored: _Stored, sink: Sink, desk: Desk, hashes: _Hashes) -> None:
    clip = job.clip or (0, job.size)
    at = 0
    for piece in _raw_pieces(job, stored, desk):
        hashes.update(piece)
        _write_clipped(sink, piece, at, clip, clip[0])
        at += len(piece)
        if at >= clip[1]:
            break
    if job.clip is None and at != job.size:
        raise ShardCorruptError(f"expected {job.size} bytes, got {at}")


def _raw_pieces(job: StreamJob, stored: _Stored, desk: Desk) -> Iterator[memoryview]:
    if job.compression is None:
        if job.stored != job.size:
            raise ShardCorruptError(f"expected {job.size} bytes stored as they are, got {job.stored}")
        while piece := stored.read(PIECE):
            yield piece
        return
    stream = open_decompressor(job.compression, stored, job.size)
    while got := stream.readinto(desk.raw):
        yield desk.raw[:got]


class _Stored:
    """The stored bytes as a decompressor pulls them, hashed on the way."""

    def __init__(self, parts: ObjectParts, hashes: Mapping[str, str]) -> None:
        self._pieces = parts.pieces()
        self._rest = memoryview(b"")
        self._hashes = _Hashes(hashes)
        self.taken = 0

    def read(self, size: int, /) -> memoryview:
        """At most `size` bytes; none at the end."""
        if not self._rest:
            self._rest = next(self._pieces, memoryview(b""))
            self.taken += len(self._rest)
            self._hashes.update(self._rest)
        found, self._rest = self._rest[:size], self._rest[size:]
        return found

    def check_end(self) -> None:
        """Take what a decompressor left (there is none in a sound object), and compare the hashes."""
        while self.read(PIECE):
            pass
        self._hashes.check("the stored bytes")

    def close(self) -> None:
        """End the gets that are under way."""
        self._pieces.close()


class _Hashes:
    """Expected digests of bytes that pass by, and maybe one of our own."""

    def __init__(self, expected: Mapping[str, str], *, own: bool = False) -> None:
        self._expected = dict(expected)
        self._hashes: dict[str, Hash] = {name: new_hash(name) for name in expected}
        self._own = (min(expected, default=None) or _own_hash_name()) if own else None
        if self._own is not None and self._own not in self._hashes:
            self._hashes[self._own] = new_hash(self._own)

    def update(self, data: memoryview) -> None:
        """Take in more bytes."""
        for each in self._hashes.values():
            each.update(data)

    def mismatch(self) -> tuple[str, str, str] | None:
        """(name, expected, got) of a digest that differs."""
        for name, expected in self._expected.items():
            if (got := self._hashes[name].hexdigest()) != expected.lower():
                return name, expected, got
        return None

    def check(self, what: str) -> None:
        """Raise ShardCorruptError when a digest differs."""
        if found := self.mismatch():
            raise ShardCorruptError(f"{found[0]} of {what}: expected {found[1]}, got {found[2]}")

    def own(self) -> str | None:
        """`name:hexdigest`, if one was asked for."""
        return f"{self._own}:{self._hashes[self._own].hexdigest()}" if self._own is not None else None


def _own_hash_name() -> str:
    # It guards against a disk and against editors, not against attackers: the fastest that is there.
    try:
        new_hash("xxh3_128")
    except MissingDependencyError:
        return "sha1"
    return "xxh3_128"


def _hash(job: HashJob, sink: Sink, desk: Desk) -> JobResult:
    hashes = _Hashes(job.hashes, own=job.own)
    done = 0
    while got := sink.read(desk.stored):
        hashes.update(desk.stored[:got])
        done += got
    same = done == job.size and hashes.mismatch() is None
    return JobResult(size=done, hashes_ok=same if job.hashes or done != job.size else None, own_hash=hashes.own())
