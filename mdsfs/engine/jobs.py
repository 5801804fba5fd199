"""What the engine asks of a fetcher, and what it hears back, as values and as JSON.

A job names its object and every byte range itself, so that it may be repeated by another process at any time: what it
writes is the same bytes at the same places. The file is not in the job: its descriptor travels beside it. Owns no I/O.
"""

from __future__ import annotations

import base64
import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from streaming.mds.seekable import Frame

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from streaming.mds.seekable import SeekTable

__all__ = [
    "SMALL_THREADS",
    "Frame",
    "FramesJob",
    "HashJob",
    "Job",
    "JobResult",
    "Piece",
    "ProbeJob",
    "RangeJob",
    "StreamJob",
    "is_small",
    "job_from_wire",
    "job_to_wire",
    "object_of",
    "pieces_from_wire",
    "pieces_to_wire",
]

# A job of so few bytes waits for its answer most of the time: each thread for large jobs has so many for small ones.
SMALL = 128 << 10
SMALL_THREADS = 8

Clip = tuple[int, int]
Piece = tuple[int, bytes]
"""Bytes, and where in the file they belong."""


@dataclass(frozen=True, slots=True)
class RangeJob:
    """Bytes `start:stop` of an object stored raw, written to the file from `at` on.

    `size` is the size of the whole object, where it is known.
    """

    key: str
    etag: str | None
    start: int
    stop: int
    at: int
    size: int | None = None


@dataclass(frozen=True, slots=True)
class FramesJob:
    """Frames that lie one after another in the object: each is decompressed, checked, and written at its raw place.

    Only raw bytes inside `clip` are written (None: all), `at_shift` bytes further down than they are in the shard: with
    `at_shift == clip[0]` they start at 0 (a memfd). Extents are reported where they are written.

    `patches` are bytes of the file that are written beside them. The result's `edges` are what the frames hold of their
    first and last block where those are not inside the clip.
    """

    key: str
    etag: str | None
    frames: tuple[Frame, ...]
    clip: Clip | None = None
    at_shift: int = 0
    size: int | None = None
    patches: tuple[Piece, ...] = ()


@dataclass(frozen=True, slots=True)
class StreamJob:
    """A whole object from its start: stored bytes → hash → decompress → hash → file, written as it comes.

    `stored` and `size` are the sizes that the index declares. A size or hash that differs is a ShardCorruptError after
    the last byte; extents reported before were unverified. `own_hash` asks for a hash of the raw bytes even where the
    index has none. With `clip` only that part is written, from 0 on, nothing can be hashed, and the job ends after it.
    `compression` None: the object is stored raw.
    """

    key: str
    etag: str | None
    stored: int
    size: int
    compression: str | None
    zip_hashes: Mapping[str, str] = field(default_factory=dict)
    raw_hashes: Mapping[str, str] = field(default_factory=dict)
    own_hash: bool = False
    clip: Clip | None = None


@dataclass(frozen=True, slots=True)
class ProbeJob:
    """Look at the object's tail: `seek_table` of the result is its table, or None if it is not seekable zstd."""

    key: str
    etag: str | None
    stored: int


@dataclass(frozen=True, slots=True)
class HashJob:
    """Hash a complete cache file (its descriptor must be readable); no remote is touched.

    `hashes` are what is expected (name → hex digest): `hashes_ok` of the result is whether all agree, None for no
    hashes. `own` asks for our own hash too. `key` only names the file in errors.
    """

    size: int
    hashes: Mapping[str, str] = field(default_factory=dict)
    own: bool = False
    key: str = ""


Job = RangeJob | FramesJob | StreamJob | ProbeJob | HashJob


@dataclass(frozen=True, slots=True)
class JobResult:
    """What a finished job found.

    `etag` and `size` are the object's (None where the store does not say). `bytes` were received from the store.
    `requests`, `retries` and `errors` are what the fetcher counted since its previous report: right in the sum over
    all jobs, roughly for one. `hashes_ok`: None when there was nothing to compare; a StreamJob whose hash differs is an
    error, a HashJob's False is its answer. `own_hash` is `name:hexdigest`.
    """

    etag: str | None = None
    size: int | None = None
    bytes: int = 0
    requests: int = 0
    retries: int = 0
    errors: int = 0
    hashes_ok: bool | None = None
    own_hash: str | None = None
    seek_table: SeekTable | None = None
    edges: tuple[Piece, ...] = ()


_KINDS: dict[str, type[Job]] = {
    "range": RangeJob,
    "frames": FramesJob,
    "stream": StreamJob,
    "probe": ProbeJob,
    "hash": HashJob,
}
_NAMES = {cls: name for name, cls in _KINDS.items()}


def is_small(job: Job) -> bool:
    """Whether the job asks a store for a few bytes."""
    match job:
        case RangeJob():
            return job.stop - job.start <= SMALL
        case FramesJob():
            return sum(frame.zip_len for frame in job.frames) <= SMALL
        case _:
            return isinstance(job, ProbeJob)


def job_to_wire(job: Job) -> dict[str, Any]:
    """The job as JSON can carry it."""
    fields = {each.name: getattr(job, each.name) for each in dataclasses.fields(job)}
    if "patches" in fields:
        fields["patches"] = pieces_to_wire(fields["patches"])
    return {"kind": _NAMES[type(job)], **fields}


def job_from_wire(wire: Mapping[str, Any]) -> Job:
    """The job that `job_to_wire` described."""
    fields = dict(wire)
    cls = _KINDS[fields.pop("kind")]
    if "frames" in fields:
        fields["frames"] = tuple(Frame(*each) for each in fields["frames"])
    if "patches" in fields:
        fields["patches"] = pieces_from_wire(fields["patches"])
    if fields.get("clip") is not None:
        fields["clip"] = tuple(fields["clip"])
    return cls(**fields)


def pieces_to_wire(pieces: Iterable[Piece]) -> list[tuple[int, str]]:
    """Pieces as JSON can carry them."""
    return [(at, base64.b64encode(data).decode("ascii")) for at, data in pieces]


def pieces_from_wire(wire: Iterable[tuple[int, str]]) -> tuple[Piece, ...]:
    """The pieces that `pieces_to_wire` described."""
    return tuple((int(at), base64.b64decode(text)) for at, text in wire)


def object_of(job: Job) -> str | None:
    """The key of the object that a job may get stuck on; None for a job without a remote."""
    return None if isinstance(job, HashJob) else job.key
