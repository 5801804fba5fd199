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
    "GROUP_BYTES",
    "GROUP_PARTS",
    "GROUP_THREADS",
    "SMALL",
    "SMALL_THREADS",
    "Frame",
    "FramesJob",
    "GroupJob",
    "HashJob",
    "Job",
    "JobResult",
    "Part",
    "Piece",
    "ProbeJob",
    "RangeJob",
    "SingleJob",
    "StreamJob",
    "is_small",
    "job_from_wire",
    "job_to_wire",
    "kind_of",
    "object_of",
    "pieces_from_wire",
    "pieces_to_wire",
]

# A job of so few bytes waits for its answer most of the time: each thread for large jobs has so many for small ones.
SMALL = 128 << 10
SMALL_THREADS = 8
# ... and two for groups of small ones, which wait for many answers at once: one of the two is kept for what somebody
# waits for.
GROUP_THREADS = 2
GROUP_PARTS = 64
GROUP_BYTES = 1 << 20

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

    @property
    def stored_range(self) -> tuple[int, int]:
        """The bytes of the object that it asks for."""
        return self.start, self.stop


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

    @property
    def stored_range(self) -> tuple[int, int]:
        """The bytes of the object that it asks for."""
        if not self.frames:
            return 0, 0
        return self.frames[0].zip_off, self.frames[-1].zip_off + self.frames[-1].zip_len


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


@dataclass(frozen=True, slots=True)
class Part:
    """One job of a group: for which of the group's descriptors, and the number that reports name it by."""

    number: int
    file: int
    job: RangeJob | FramesJob


@dataclass(frozen=True, slots=True)
class GroupJob:
    """Small jobs, each of a known version of its object, to be done beside each other.

    Their files' descriptors travel beside it. Parts are reported as they are written; those that could not be brought
    at the first attempt are not, and nothing is said of why.
    """

    parts: tuple[Part, ...]


SingleJob = RangeJob | FramesJob | StreamJob | ProbeJob | HashJob
Job = SingleJob | GroupJob


@dataclass(frozen=True, slots=True)
class JobResult:
    """What a finished job found.

    `etag` and `size` are the object's (None where the store does not say). `bytes` were received from the store.
    `requests`, `retries` and `errors` are what the fetcher counted since its previous report: right in the sum over
    all jobs, roughly for one. `hashes_ok`: None when there was nothing to compare; a StreamJob whose hash differs is an
    error, a HashJob's False is its answer. `own_hash` is `name:hexdigest`. `quickest`: seconds that the part of a group
    took that took least.
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
    quickest: float | None = None


_KINDS: dict[str, type[Job]] = {
    "range": RangeJob,
    "frames": FramesJob,
    "stream": StreamJob,
    "probe": ProbeJob,
    "hash": HashJob,
    "group": GroupJob,
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


def kind_of(job: Job) -> int:
    """Which of the three kinds of threads does the job: 0 for large ones, 1 for small ones, 2 for groups."""
    return 2 if isinstance(job, GroupJob) else int(is_small(job))


def job_to_wire(job: Job) -> dict[str, Any]:
    """The job as JSON can carry it."""
    if isinstance(job, GroupJob):
        return _group_to_wire(job)
    fields = {each.name: getattr(job, each.name) for each in dataclasses.fields(job)}
    if "patches" in fields:
        fields["patches"] = pieces_to_wire(fields["patches"])
    return {"kind": _NAMES[type(job)], **fields}


def job_from_wire(wire: Mapping[str, Any]) -> Job:
    """The job that `job_to_wire` described."""
    if wire["kind"] == "group":
        return _group_from_wire(wire)
    fields = dict(wire)
    cls = _KINDS[fields.pop("kind")]
    if "frames" in fields:
        fields["frames"] = tuple(Frame(*each) for each in fields["frames"])
    if "patches" in fields:
        fields["patches"] = pieces_from_wire(fields["patches"])
    if fields.get("clip") is not None:
        fields["clip"] = tuple(fields["clip"])
    return cls(**fields)


def _group_to_wire(job: GroupJob) -> dict[str, Any]:
    # Many parts are of the same few objects, and there are thousands a second: names of fields would be most of it.
    objects: dict[tuple[str, str | None, int | None], int] = {}
    parts: list[tuple[Any, ...]] = []
    for each in job.parts:
        found = each.job
        place = each.number, each.file, objects.setdefault((found.key, found.etag, found.size), len(objects))
        if isinstance(found, FramesJob):
            parts.append((*place, found.clip, found.at_shift, found.frames, pieces_to_wire(found.patches)))
        else:
            parts.append((*place, found.start, found.stop, found.at))
    return {"kind": "group", "objects": list(objects), "parts": parts}


def _group_from_wire(wire: Mapping[str, Any]) -> GroupJob:
    parts = []
    for number, file, which, *rest in wire["parts"]:
        key, etag, size = wire["objects"][which]
        job: RangeJob | FramesJob
        if len(rest) == 3:
            start, stop, at = rest
            job = RangeJob(key, etag, start, stop, at, size)
        else:
            clip, shift, frames, patches = rest
            found = tuple(map(Frame._make, frames))
            job = FramesJob(key, etag, found, tuple(clip) if clip else None, shift, size, pieces_from_wire(patches))
        parts.append(Part(number, file, job))
    return GroupJob(tuple(parts))


def pieces_to_wire(pieces: Iterable[Piece]) -> list[tuple[int, str]]:
    """Pieces as JSON can carry them."""
    return [(at, base64.b64encode(data).decode("ascii")) for at, data in pieces]


def pieces_from_wire(wire: Iterable[tuple[int, str]]) -> tuple[Piece, ...]:
    """The pieces that `pieces_to_wire` described."""
    return tuple((int(at), base64.b64decode(text)) for at, text in wire)


def object_of(job: Job) -> str | None:
    """The key of the object that a job may get stuck on; None for a job without a remote, or of several objects."""
    return None if isinstance(job, HashJob | GroupJob) else job.key
