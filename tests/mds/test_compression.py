"""Compression: names, round trips, and the declared size as a bound that holds whatever the bytes say."""

from __future__ import annotations

import bz2
import gzip
import io
import sys
import tracemalloc

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.errors import MissingDependencyError, ShardCorruptError
from streaming.mds.compression import (
    compress,
    compression_names,
    decompress,
    extension,
    is_compression,
    open_decompressor,
    split_compression,
)

NAMES = ["zstd", "zstd:1", "gz", "gz:0", "bz2:1", "br:3", "snappy"]
DATA = b"".join(bytes([at % 251]) * (at % 97) for at in range(4000))


class Trickle:
    """A source that gives a few bytes at a time."""

    def __init__(self, data: bytes, step: int) -> None:
        self._data = io.BytesIO(data)
        self._step = step

    def read(self, size: int, /) -> bytes:
        return self._data.read(min(size, self._step))


def streamed(name: str, stored: bytes, size: int, *, step: int = 1 << 20, buffer: int = 1 << 16) -> bytes:
    """What a streaming decompressor gives until its end."""
    stream = open_decompressor(name, Trickle(stored, step), size)
    out, piece = bytearray(), bytearray(buffer)
    while got := stream.readinto(piece):
        out += piece[:got]
    assert stream.readinto(piece) == 0
    return bytes(out)


def test_the_names_of_the_index() -> None:
    """58 names: each codec alone and with each of its levels."""
    assert len(compression_names()) == 58
    assert is_compression("zstd:22")
    assert is_compression("gz:0")
    for wrong in ("zstd:0", "zstd:23", "bz2:0", "br:12", "snappy:1", "zst", "", "zstd:", "zstd:07", "lz4"):
        assert not is_compression(wrong)
        with pytest.raises(ValueError, match="Invalid compression"):
            split_compression(wrong)
    assert [split_compression(name) for name in ("br", "bz2", "gz", "zstd", "zstd:7", "snappy")] == [
        ("br", 11), ("bz2", 9), ("gz", 9), ("zstd", 3), ("zstd", 7), ("snappy", -1),
    ]  # fmt: skip
    assert extension("zstd:7") == "zstd"


@pytest.mark.parametrize("name", NAMES)
def test_round_trips(name: str) -> None:
    """Whole and streaming, something and nothing."""
    for data in (DATA, b"", b"x"):
        stored = compress(name, data)
        assert compress(name, data) == stored
        assert decompress(name, stored, len(data)) == data
        assert streamed(name, stored, len(data)) == data


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(NAMES),
    st.binary(max_size=300),
    st.integers(min_value=1, max_value=300),
    st.integers(min_value=1, max_value=50),
    st.integers(min_value=1, max_value=400),
)
def test_pieces_of_any_size_give_the_same_bytes(name: str, seed: bytes, times: int, step: int, buffer: int) -> None:
    """However few bytes the source gives and the buffer takes."""
    data = seed * times
    assert streamed(name, compress(name, data), len(data), step=step, buffer=buffer) == data


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wrong", [-len(DATA), -1, 1, len(DATA)])
def test_another_size_than_declared_is_corrupt(name: str, wrong: int) -> None:
    """More bytes than the index says, or fewer, are an error with both numbers."""
    stored = compress(name, DATA)
    with pytest.raises(ShardCorruptError, match=rf"expected {len(DATA) + wrong} bytes"):
        decompress(name, stored, len(DATA) + wrong)
    with pytest.raises(ShardCorruptError):
        streamed(name, stored, len(DATA) + wrong)


@pytest.mark.parametrize("name", NAMES)
def test_damage_is_named(name: str) -> None:
    """Bytes cut off, added, or of something else."""
    stored = compress(name, DATA)
    for damaged in (stored[: len(stored) // 2], stored + b"trailing", b"", b"something else altogether" * 9):
        with pytest.raises(ShardCorruptError):
            decompress(name, damaged, len(DATA))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(NAMES), st.integers(min_value=0), st.binary(min_size=1, max_size=6))
def test_flipped_bytes_never_give_another_length(name: str, at: int, put: bytes) -> None:
    """Damage anywhere is an error or as many bytes as declared: the hash of the index decides about those."""
    stored = compress(name, DATA)
    at %= len(stored)
    damaged = stored[:at] + put + stored[at + len(put) :]
    try:
        out = decompress(name, damaged, len(DATA))
    except ShardCorruptError:
        return
    assert len(out) == len(DATA)


@pytest.mark.parametrize("name", ["zstd", "gz", "bz2", "br:5"])
def test_a_bomb_inflates_no_further_than_its_declared_size(name: str) -> None:
    """256 MiB behind a few bytes, declared as 1,000: nothing near that is ever allocated."""
    bomb = compress(name, bytes(256 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(ShardCorruptError):
            decompress(name, bomb, 1000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


def test_a_snappy_block_of_another_size_is_not_decompressed() -> None:
    """Its first bytes say how much the library would allocate: they are compared first."""
    with pytest.raises(ShardCorruptError, match="got a block of 4294967295"):
        decompress("snappy", b"\xff\xff\xff\xff\x0f" + bytes(20), 1000)
    with pytest.raises(ShardCorruptError, match="snappy block"):
        decompress("snappy", b"\xff" * 6, 1000)


def test_zstd_of_many_kinds_of_frames() -> None:
    """Frames with and without their size, with checksums, empty ones, and skippable frames between them."""
    unsized = zstandard.ZstdCompressor().compressobj()
    skippable = (0x184D2A53).to_bytes(4, "little") + (5).to_bytes(4, "little") + b"12345"
    parts = [
        skippable,
        zstandard.ZstdCompressor(write_checksum=True).compress(DATA),
        zstandard.ZstdCompressor().compress(b""),
        skippable * 2,
        unsized.compress(DATA) + unsized.flush(),
        skippable,
    ]
    for step in (7, 1 << 20):
        assert streamed("zstd", b"".join(parts), 2 * len(DATA), step=step) == DATA * 2


def test_gz_and_bz2_of_many_members() -> None:
    """Files that were appended to, and gzip's padding with zeros."""
    assert decompress("gz", gzip.compress(DATA[:99]) + gzip.compress(DATA[99:]) + bytes(50), len(DATA)) == DATA
    assert decompress("bz2", bz2.compress(DATA[:99]) + bz2.compress(DATA[99:]), len(DATA)) == DATA


def test_a_checksum_in_the_frame_is_verified() -> None:
    """A flipped bit that zstd itself could decode is noticed where the frame has its checksum."""
    stored = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(bytes(range(256))))
    stored[100] ^= 1
    with pytest.raises(ShardCorruptError, match="checksum"):
        decompress("zstd", stored, 256)


@pytest.mark.parametrize("name", ["zstd", "gz", "bz2", "br:5", "snappy"])
def test_errors_of_the_source_pass_through(name: str) -> None:
    """A connection that breaks is not a corrupt shard."""

    class Broken:
        def read(self, size: int, /) -> bytes:
            raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError, match="gone"):
        open_decompressor(name, Broken(), 10).readinto(bytearray(10))


@pytest.mark.parametrize(("name", "module", "extra"), [("br", "brotli", "br"), ("snappy", "snappy", "snappy")])
def test_a_missing_codec_names_its_extra(monkeypatch: pytest.MonkeyPatch, name: str, module: str, extra: str) -> None:
    """What to install stands in the error, for writing and for reading."""
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=rf"pip install 'mdsfs\[{extra}\]'"):
        compress(name, b"")
    with pytest.raises(MissingDependencyError, match=rf"pip install 'mdsfs\[{extra}\]'"):
        decompress(name, b"x", 1)
