"""Seekable zstd: a file of many small frames with a table of them at its end, so that a range can be read alone.

The format is zstd's own (contrib/seekable_format): ordinary frames one after the other, then a skippable frame that an
ordinary decoder passes over.

    u32 0x184D2A5E · u32 length · N × (u32 stored size, u32 raw size[, u32 checksum])
    · u32 N · u8 flags · u32 0x8F92EAB1

A checksum is the low half of the XXH64 of the raw bytes, the same four bytes with which zstd ends a frame that carries
its checksum. Frames are cut at sample boundaries: who reads a sample decompresses that sample's frame and no other.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import zstandard

from streaming.errors import ShardCorruptError, ShardFormatError
from streaming.sizes import parse_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Buffer = bytes | bytearray | memoryview

__all__ = [
    "DEFAULT_FRAME",
    "FOOTER_SIZE",
    "MAX_FRAME",
    "SAMPLE_FRAMES",
    "TAIL_SIZE",
    "Frame",
    "SeekTable",
    "SeekableCompressor",
    "compress_seekable",
    "decompress_frame",
    "frame_size",
    "plan_frames",
    "table_size",
]

# Text in frames of 16 KiB takes 1.27 times what it takes in one frame, 1.14 in 64 KiB, 1.03 in 1 MiB; a request to an
# object store takes as long as some hundreds of KiB. Between the two:
DEFAULT_FRAME = 256 << 10
SAMPLE_FRAMES = "sample"

_SKIPPABLE = 0x184D2A5E
_SEEKABLE = 0x8F92EAB1
_HEADER = struct.Struct("<II")
_FOOTER = struct.Struct("<IBI")
FOOTER_SIZE = _FOOTER.size
# What to fetch from an object's end to learn whether it is seekable: the whole table of up to 1,300 frames with
# checksums, more than a shard of 64 MiB has at the default frame size.
TAIL_SIZE = 16 << 10
_CHECKSUM_FLAG = 0x80
_RESERVED_FLAGS = 0x7C
_MAX_FRAMES = 0x8000000  # the format's own limit
# A frame's sizes are 32-bit; no frame of a shard comes near, and a decoder must not allocate more on a table's word.
MAX_FRAME = 1 << 30


class Frame(NamedTuple):
    """One frame: where it lies stored and raw, and the low half of its XXH64 if the table has it."""

    zip_off: int
    zip_len: int
    raw_off: int
    raw_len: int
    checksum: int | None


# ---- reading ---------------------------------------------------------------------------------------------------------


def table_size(tail: Buffer) -> int | None:
    """How many bytes at the object's end are its seek table, from at least its last 9 bytes; None if there is none."""
    if len(tail) < FOOTER_SIZE:
        return None
    count, flags, magic = _FOOTER.unpack_from(tail, len(tail) - FOOTER_SIZE)
    if magic != _SEEKABLE or flags & _RESERVED_FLAGS or count > _MAX_FRAMES:
        return None
    return int(_HEADER.size + count * _entry(flags).itemsize + FOOTER_SIZE)


def _entry(flags: int) -> np.dtype[Any]:
    fields = [("stored", "<u4"), ("raw", "<u4")]
    return np.dtype([*fields, ("checksum", "<u4")] if flags & _CHECKSUM_FLAG else fields)


@dataclass(frozen=True, slots=True, eq=False)
class SeekTable:
    """The frames of one object. `zip_at` and `raw_at` have one entry more than there are frames: the ends."""

    zip_at: NDArray[np.int64]
    raw_at: NDArray[np.int64]
    checksums: NDArray[np.uint32] | None

    @classmethod
    def parse(cls, tail: Buffer, stored: int, raw: int | None = None) -> SeekTable | None:
        """The table at the end of `tail`, which is the end of an object of `stored` bytes; None if it is not seekable.

        `tail` must hold `table_size(tail)` bytes. Raises ShardFormatError where the frames do not add up to the
        object's size, or to `raw` bytes once decompressed.
        """
        length = table_size(tail)
        if length is None:
            return None
        if length > len(tail):
            if length > stored:
                raise ShardFormatError(f"seek table: expected at most the object's {stored} bytes, got {length}")
            raise ValueError(f"a seek table of {length} bytes needs a tail of as many, got {len(tail)}")
        view = memoryview(tail)[len(tail) - length :]
        magic, size = _HEADER.unpack_from(view)
        if magic != _SKIPPABLE or size != length - _HEADER.size:
            raise ShardFormatError(f"seek table: expected a skippable frame of {length} bytes, got another start")
        flags = view[-5]
        entries = np.frombuffer(view[_HEADER.size : -FOOTER_SIZE], _entry(flags))
        zip_at, raw_at = _ends(entries["stored"]), _ends(entries["raw"])
        if zip_at[-1] + length != stored:
            raise ShardFormatError(f"seek table: expected frames of {stored - length} bytes, got {zip_at[-1]}")
        if raw is not None and raw_at[-1] != raw:
            raise ShardFormatError(f"seek table: expected {raw} bytes after decompression, got {raw_at[-1]}")
        if len(entries) and entries["raw"].max() > MAX_FRAME:
            raise ShardFormatError(f"seek table: expected frames of at most {MAX_FRAME} bytes, got a larger one")
        return cls(zip_at, raw_at, entries["checksum"].copy() if flags & _CHECKSUM_FLAG else None)

    def __len__(self) -> int:
        return len(self.zip_at) - 1

    def __repr__(self) -> str:
        return f"<SeekTable: {len(self)} frames, {int(self.zip_at[-1])} bytes stored, {int(self.raw_at[-1])} raw>"

    @property
    def raw_size(self) -> int:
        """Bytes after decompression."""
        return int(self.raw_at[-1])

    def frames_for(self, start: int, stop: int) -> list[Frame]:
        """The frames that hold the raw bytes start:stop, in order; they lie one after the other."""
        if start >= stop:
            return []
        if start < 0 or stop > self.raw_size:
            raise ValueError(f"expected a range inside 0 to {self.raw_size}, got {start} to {stop}")
        first = int(np.searchsorted(self.raw_at, start, side="right")) - 1
        last = int(np.searchsorted(self.raw_at, stop, side="left"))
        return self.frames(first, last)

    def border_from(self, at: int) -> int:
        """The first border of frames at or after a raw offset; the raw size where there is none."""
        return int(self.raw_at[min(int(np.searchsorted(self.raw_at, at, side="left")), len(self.raw_at) - 1)])

    def frames(self, first: int, last: int) -> list[Frame]:
        """Frames number first to last, without the last."""
        zip_at, raw_at = self.zip_at[first : last + 1].tolist(), self.raw_at[first : last + 1].tolist()
        sums: Sequence[int | None] = (
            [None] * (last - first) if self.checksums is None else self.checksums[first:last].tolist()
        )
        return [
            Frame(zip_at[i], zip_at[i + 1] - zip_at[i], raw_at[i], raw_at[i + 1] - raw_at[i], sums[i])
            for i in range(last - first)
        ]

    def to_bytes(self) -> bytes:
        """The skippable frame that `parse` reads."""
        return _dump(np.diff(self.zip_at), np.diff(self.raw_at), self.checksums)


def _ends(sizes: NDArray[np.uint32]) -> NDArray[np.int64]:
    ends = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=ends[1:])
    return ends


def _dump(stored: Any, raw: Any, checksums: Any) -> bytes:
    flags = 0 if checksums is None else _CHECKSUM_FLAG
    entries = np.empty(len(stored), _entry(flags))
    entries["stored"] = stored
    entries["raw"] = raw
    if checksums is not None:
        entries["checksum"] = checksums
    body = entries.tobytes() + _FOOTER.pack(len(entries), flags, _SEEKABLE)
    return _HEADER.pack(_SKIPPABLE, len(body)) + body


def decompress_frame(data: Buffer, raw_len: int, checksum: int | None = None) -> bytes:
    """The raw bytes of one frame. Raises ShardCorruptError unless they are `raw_len` with that checksum."""
    if not raw_len:  # a skippable frame, or one of nothing
        return b""
    try:
        declared = zstandard.frame_content_size(data)
        if declared not in (-1, raw_len):  # refused before anything is allocated for it
            raise ShardCorruptError(f"frame: expected {raw_len} bytes after decompression, got a frame of {declared}")
        has_checksum = zstandard.get_frame_parameters(data).has_checksum
        raw = zstandard.ZstdDecompressor().decompress(data, max_output_size=raw_len, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ShardCorruptError(f"frame: can't be decompressed: {error}") from error
    if len(raw) != raw_len:
        raise ShardCorruptError(f"frame: expected {raw_len} bytes after decompression, got {len(raw)}")
    if checksum is not None:
        # the decoder has compared the frame's own checksum with the bytes: comparing the two numbers is enough then
        found = _frame_checksum(data) if has_checksum else _frame_checksum(_checksummed(1).compress(raw))
        if found != checksum:
            raise ShardCorruptError(f"frame: expected checksum {checksum:08x}, got {found:08x}")
    return raw


def _frame_checksum(frame: Buffer) -> int:
    return int.from_bytes(frame[-4:], "little")


# ---- writing ---------------------------------------------------------------------------------------------------------


def frame_size(frame: int | str | None) -> int | None:
    """Raw bytes that a frame has at most, from `256kb` or a number; None for `sample`, a frame a sample.

    Raises ValueError for anything else.
    """
    if frame == SAMPLE_FRAMES:
        return None
    size = parse_size(frame) if frame is not None else 0
    if not 0 < size <= MAX_FRAME:
        raise ValueError(f"frame: expected 'sample' or a size from 1 to {MAX_FRAME}, got {frame!r}")
    return size


def plan_frames(cuts: NDArray[Any], target: int | None) -> NDArray[np.int64]:
    """Where to cut a file of samples into frames: ascending positions from 0 to the end.

    `cuts` are the ends of the file's parts, ascending: first what stands before the samples (which gets frames of its
    own), then each sample, so that the last is the file's size. A frame is closed when the next sample would make it
    larger than `target`; what is larger alone is cut into equal pieces. `target` None is a frame a sample, however
    large.
    """
    edges = [0]
    head, end = int(cuts[0]), int(cuts[-1])
    _pieces(edges, head, target or DEFAULT_FRAME)
    if target is None:
        edges.extend(cuts[1:].tolist())
    at = 0
    while target is not None and edges[-1] < end:
        start = edges[-1]
        # the furthest sample end that still fits; the next sample's own end where not even that one fits
        fits = int(np.searchsorted(cuts, start + target, side="right")) - 1
        at = max(fits, int(np.searchsorted(cuts, start, side="right")))
        _pieces(edges, int(cuts[at]), target)
    return np.unique(np.array(edges, np.int64))


def _pieces(edges: list[int], stop: int, target: int) -> None:
    """Extends the edges to `stop` in equal steps of at most `target`."""
    start = edges[-1]
    count = -(-(stop - start) // target)
    edges.extend(start + (stop - start) * step // count for step in range(1, count + 1))


def compress_seekable(data: Buffer, edges: NDArray[np.int64], level: int) -> bytes:
    """The data as seekable zstd with a frame between any two neighbouring edges, each with its checksum."""
    compressor = SeekableCompressor(edges, level)
    return b"".join([*compressor.feed(data), compressor.finish()])


class SeekableCompressor:
    """The same in pieces, for who does not have all of the data at once: it holds one raw frame at most."""

    def __init__(self, edges: NDArray[np.int64], level: int) -> None:
        self._compressor = _checksummed(level)
        self._sizes: list[int] = np.diff(edges).tolist()
        self._stored: list[int] = []
        self._sums: list[int] = []
        self._begun = bytearray()

    def feed(self, data: Buffer) -> list[bytes]:
        """The frames that end within these bytes, which follow those of the last call."""
        view, frames = memoryview(data).cast("B"), []
        while len(self._stored) < len(self._sizes):
            missing = self._sizes[len(self._stored)] - len(self._begun)
            if len(view) < missing:
                break
            frames.append(self._frame(view[:missing]))
            view = view[missing:]
        self._begun += view
        return frames

    def _frame(self, end: memoryview) -> bytes:
        frame = bytes(self._compressor.compress(self._begun + end if self._begun else end))
        self._begun = bytearray()
        self._stored.append(len(frame))
        self._sums.append(_frame_checksum(frame))
        return frame

    def finish(self) -> bytes:
        """What follows the last frame: the seek table. Raises ValueError unless the bytes fed reach the last edge."""
        if len(self._stored) != len(self._sizes) or self._begun:
            found = sum(self._sizes[: len(self._stored)]) + len(self._begun)
            raise ValueError(f"expected {sum(self._sizes)} bytes to compress, got {found}")
        if self._sizes:
            return _dump(self._stored, self._sizes, self._sums)
        frame = bytes(self._compressor.compress(b""))  # ordinary decoders want at least one frame
        return frame + _dump([len(frame)], [0], [_frame_checksum(frame)])


def _checksummed(level: int) -> zstandard.ZstdCompressor:
    return zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True)
