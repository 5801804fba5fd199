"""Seekable zstd: frames at sample boundaries, a table that adds up, ranges that decompress alone."""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from streaming.errors import ShardCorruptError, ShardFormatError
from streaming.mds.compression import decompress
from streaming.mds.seekable import (
    DEFAULT_FRAME,
    FOOTER_SIZE,
    SeekableCompressor,
    SeekTable,
    compress_seekable,
    decompress_frame,
    plan_frames,
    table_size,
)

SIZES = st.lists(st.sampled_from([0, 1, 7, 99, 100, 101, 250, 1000]), max_size=25)
HEADS = st.integers(min_value=0, max_value=450)


def cuts_of(head: int, sizes: list[int]) -> np.ndarray[Any, Any]:
    """The ends of what stands before the samples, and of each sample."""
    return head + np.cumsum([0, *sizes])


def shard(size: int) -> bytes:
    """Bytes that compress a little, and no two stretches alike."""
    return b"".join(at.to_bytes(3, "little") for at in range(size // 3 + 1))[:size]


def made(head: int = 50, sizes: list[int] | None = None, target: int | None = 100) -> tuple[bytes, bytes, Any]:
    """(raw, stored, cuts) of a small seekable file."""
    cuts = cuts_of(head, [30, 40, 20, 250, 60] if sizes is None else sizes)
    data = shard(int(cuts[-1]))
    return data, compress_seekable(data, plan_frames(cuts, target), 3), cuts


def test_golden_bytes_of_the_table() -> None:
    """The layout is zstd's: magic, length, entries of 12 bytes with checksums, count, flags, magic."""
    data = b"hello" * 10
    stored = compress_seekable(data, np.array([0, 20, 50]), 3)
    first, second = (
        zstandard.ZstdCompressor(level=3, write_checksum=True).compress(part) for part in (data[:20], data[20:])
    )
    assert stored.startswith(first + second)
    table = struct.pack(
        "<II IIIIII IBI",
        0x184D2A5E, 33,
        len(first), 20, int.from_bytes(first[-4:], "little"),
        len(second), 30, int.from_bytes(second[-4:], "little"),
        2, 0x80, 0x8F92EAB1,
    )  # fmt: skip
    assert stored == first + second + table
    assert table_size(stored[-FOOTER_SIZE:]) == len(table)


def test_frames_end_where_samples_do() -> None:
    """The head has its own frame; samples share one up to the target; a larger one is cut evenly."""
    assert plan_frames(cuts_of(50, [30, 40, 20, 250, 60]), 100).tolist() == [0, 50, 140, 223, 306, 390, 450]
    assert plan_frames(cuts_of(50, [30, 40, 20, 250, 60]), None).tolist() == [0, 50, 80, 120, 140, 390, 450]
    assert plan_frames(cuts_of(0, [100, 100]), 100).tolist() == [0, 100, 200]
    assert plan_frames(cuts_of(250, []), 100).tolist() == [0, 83, 166, 250]
    assert plan_frames(cuts_of(0, []), 100).tolist() == [0]


@given(HEADS, SIZES, st.sampled_from([1, 100, 1000, DEFAULT_FRAME]))
def test_a_sample_spans_frames_only_if_it_is_larger(head: int, sizes: list[int], target: int) -> None:
    """No frame is larger than the target, and no sample that fits into one is in two."""
    cuts = cuts_of(head, sizes)
    edges = plan_frames(cuts, target)
    assert edges[0] == 0
    assert edges[-1] == cuts[-1]
    assert (np.diff(edges) > 0).all()
    assert (np.diff(edges) <= target).all()
    assert head in edges
    for start, stop in pairwise(cuts.tolist()):
        inside = ((edges > start) & (edges < stop)).sum()
        assert inside == 0 or stop - start > target


@given(HEADS, SIZES, st.sampled_from([100, 1000, None]), st.data())
def test_any_range_comes_from_its_frames(head: int, sizes: list[int], target: int | None, data: st.DataObject) -> None:
    """Frames for a range hold it, are as few as can be, and a plain decoder reads the whole."""
    raw, stored, _ = made(head, sizes, target)
    assert decompress("zstd", stored, len(raw)) == raw
    table = SeekTable.parse(stored, len(stored), len(raw))
    assert table is not None
    assert table.raw_size == len(raw)
    start = data.draw(st.integers(min_value=0, max_value=len(raw)))
    stop = data.draw(st.integers(min_value=start, max_value=len(raw)))
    frames = table.frames_for(start, stop)
    joined = b"".join(
        decompress_frame(stored[frame.zip_off :][: frame.zip_len], frame.raw_len, frame.checksum) for frame in frames
    )
    if start == stop:
        assert frames == []
        return
    assert joined[start - frames[0].raw_off :][: stop - start] == raw[start:stop]
    assert frames[0].raw_off + frames[0].raw_len > start
    assert frames[-1].raw_off < stop
    assert SeekTable.parse(table.to_bytes(), len(stored)).frames(0, len(table)) == table.frames(0, len(table))  # type: ignore[union-attr]


def test_a_range_outside_is_refused() -> None:
    """Asking for bytes that the file does not have is the caller's mistake."""
    _, stored, cuts = made()
    table = SeekTable.parse(stored, len(stored))
    assert table is not None
    for start, stop in ((-1, 5), (0, int(cuts[-1]) + 1)):
        with pytest.raises(ValueError, match="expected a range inside"):
            table.frames_for(start, stop)


def test_what_is_not_seekable() -> None:
    """Ordinary zstd, short files and foreign footers have no table."""
    plain = zstandard.ZstdCompressor().compress(shard(500))
    for data in (plain, b"", b"12345678", plain + struct.pack("<IBI", 1, 0x84, 0x8F92EAB1)):
        assert table_size(data) is None
        assert SeekTable.parse(data, len(data)) is None


def test_a_tail_that_is_too_short_says_how_much_is_needed() -> None:
    """The footer tells the table's size; parsing wants all of it."""
    _, stored, _ = made()
    size = table_size(stored[-FOOTER_SIZE:])
    assert size is not None
    assert SeekTable.parse(stored[-size:], len(stored)) is not None
    with pytest.raises(ValueError, match=f"needs a tail of as many, got {size - 1}"):
        SeekTable.parse(stored[-size + 1 :], len(stored))


def test_tables_that_do_not_add_up_are_refused() -> None:
    """Against the object's size, against the raw size, and against the skippable frame around them."""
    raw, stored, _ = made()
    size = table_size(stored)
    assert size is not None
    with pytest.raises(ShardFormatError, match="expected frames of"):
        SeekTable.parse(stored, len(stored) + 1)
    with pytest.raises(ShardFormatError, match=f"expected {len(raw) + 1} bytes after decompression, got {len(raw)}"):
        SeekTable.parse(stored, len(stored), len(raw) + 1)
    broken = bytearray(stored)
    broken[-size] ^= 1
    with pytest.raises(ShardFormatError, match="skippable frame"):
        SeekTable.parse(broken, len(stored))
    enormous = struct.pack("<IBI", 0x8000000, 0x80, 0x8F92EAB1)
    with pytest.raises(ShardFormatError, match="expected at most the object's"):
        SeekTable.parse(enormous, len(enormous))
    table = struct.pack("<II II IBI", 0x184D2A5E, 17, 0, 0xFFFFFFFF, 1, 0, 0x8F92EAB1)
    with pytest.raises(ShardFormatError, match="a larger one"):
        SeekTable.parse(table, len(table))


def test_tables_without_checksums() -> None:
    """The format allows them; frames then come without one."""
    frame = zstandard.ZstdCompressor().compress(b"abc")
    stored = frame + struct.pack("<II II IBI", 0x184D2A5E, 17, len(frame), 3, 1, 0, 0x8F92EAB1)
    table = SeekTable.parse(stored, len(stored), 3)
    assert table is not None
    assert table.frames_for(0, 3) == [(0, len(frame), 0, 3, None)]


def test_frames_of_nothing_are_passed_over() -> None:
    """Skippable frames stand in a foreign table with a raw size of 0."""
    skippable = struct.pack("<II", 0x184D2A50, 4) + b"meta"
    assert decompress_frame(skippable, 0) == b""


def test_damaged_frames_are_corrupt() -> None:
    """Wrong size, flipped, cut, two in one, wrong checksum."""
    frame = zstandard.ZstdCompressor(write_checksum=True).compress(bytes(range(200)))
    checksum = int.from_bytes(frame[-4:], "little")
    assert decompress_frame(frame, 200, checksum) == bytes(range(200))
    flipped = bytearray(frame)
    flipped[60] ^= 1
    for data, size, expected in (
        (frame, 199, checksum),
        (frame, 201, checksum),
        (flipped, 200, None),
        (frame[:-1], 200, None),
        (frame + frame, 200, None),
        (b"", 200, None),
        (b"nonsense", 200, None),
        (frame, 200, checksum ^ 1),
    ):
        with pytest.raises(ShardCorruptError, match="frame: "):
            decompress_frame(data, size, expected)


def test_the_tables_checksum_is_verified_where_the_frame_has_none() -> None:
    """Foreign writers may keep checksums in the table alone."""
    frame = zstandard.ZstdCompressor().compress(b"abc" * 50)
    checked = zstandard.ZstdCompressor(write_checksum=True).compress(b"abc" * 50)
    assert decompress_frame(frame, 150, int.from_bytes(checked[-4:], "little")) == b"abc" * 50
    with pytest.raises(ShardCorruptError, match="expected checksum 00000001"):
        decompress_frame(frame, 150, 1)


def test_a_frame_bomb_inflates_no_further_than_its_entry() -> None:
    """A frame that declares nothing, or more than the table, stops at the table's size."""
    unsized = zstandard.ZstdCompressor().compressobj()
    for bomb in (
        zstandard.ZstdCompressor().compress(bytes(64 << 20)),
        unsized.compress(bytes(64 << 20)) + unsized.flush(),
    ):
        with pytest.raises(ShardCorruptError):
            decompress_frame(bomb, 1000)


@given(sizes=SIZES, head=HEADS, pieces=st.lists(st.integers(min_value=0, max_value=400), max_size=20))
def test_pieces_give_the_same_bytes_as_the_whole(sizes: list[int], head: int, pieces: list[int]) -> None:
    """However the data is cut on its way into the compressor, the stored bytes are those of one call."""
    data, stored, cuts = made(head, sizes)
    compressor = SeekableCompressor(plan_frames(cuts, 100), 3)
    found, at = b"", 0
    for size in [*pieces, len(data)]:
        found += b"".join(compressor.feed(data[at : at + size]))
        at += size
    assert found + compressor.finish() == stored


@pytest.mark.parametrize("size", [0, 40, 99, 101])
def test_data_that_does_not_end_at_the_last_edge_is_refused(size: int) -> None:
    """Neither less nor more than what the frames were planned for is finished."""
    compressor = SeekableCompressor(np.array([0, 50, 100]), 3)
    compressor.feed(bytes(size))
    with pytest.raises(ValueError, match=f"expected 100 bytes to compress, got {size}"):
        compressor.finish()
