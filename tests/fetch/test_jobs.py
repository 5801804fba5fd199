"""Each kind of job, done by a real fetcher process from a folder."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mdsfs.engine.fetching.jobs import FramesJob, HashJob, ProbeJob, RangeJob, StreamJob, job_from_wire, job_to_wire
from streaming.errors import CacheFullError, ObjectChangedError, ObjectMissingError, ShardCorruptError
from streaming.mds.compression import compress
from streaming.mds.hashing import new_hash
from streaming.mds.seekable import Frame, compress_seekable

from .conftest import MIB, OPTIONS, content, running_pool

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.trio


def seekable(data: bytes, frame: int) -> bytes:
    return compress_seekable(data, np.array([*range(0, len(data), frame), len(data)], np.int64), 3)


def digests(names: list[str], data: bytes) -> dict[str, str]:
    hashes = {name: new_hash(name) for name in names}
    for each in hashes.values():
        each.update(data)
    return {name: each.hexdigest() for name, each in hashes.items()}


def read_back(fd: int, at: int = 0, length: int | None = None) -> bytes:
    size = os.fstat(fd).st_size
    return os.pread(fd, size if length is None else length, at)


def union(extents: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Extents joined where they touch."""
    joined: list[tuple[int, int]] = []
    for at, length in sorted(extents):
        if joined and sum(joined[-1]) == at:
            joined[-1] = (joined[-1][0], joined[-1][1] + length)
        else:
            joined.append((at, length))
    return joined


async def test_every_job_survives_the_wire() -> None:
    """A job comes out of its JSON form as it went in."""
    jobs = [
        RangeJob("a/b", '"x"', 0, 10, 4096, size=20),
        FramesJob("k", None, (Frame(0, 5, 0, 9, 7), Frame(5, 5, 9, 9, None)), clip=(3, 12), at_shift=3),
        StreamJob("k", None, 5, 9, "zstd:3", {"sha1": "00"}, {}, own_hash=True, clip=(1, 2)),
        ProbeJob("k", None, 100),
        HashJob(7, {"sha1": "00"}, own=True),
    ]
    assert [job_from_wire(job_to_wire(job)) for job in jobs] == jobs


async def test_a_range_lands_at_its_place(source: Path, new_file: Callable[[int], int]) -> None:
    """A RangeJob writes exactly its bytes, says which, and names the object's version and size."""
    data = content(5 * MIB)
    (source / "shard").write_bytes(data)
    fd, extents, etags = new_file(5 * MIB), [], []
    async with running_pool() as pool:
        job = RangeJob("shard", None, 4096, 3 * MIB, at=4096, size=len(data))
        result = await pool.run(
            str(source), OPTIONS, job, fd, on_extent=lambda *each: extents.append(each), on_etag=etags.append
        )
    assert read_back(fd) == bytes(4096) + data[4096 : 3 * MIB] + bytes(2 * MIB)
    assert union(extents) == [(4096, 3 * MIB - 4096)]
    assert etags == [result.etag]
    assert (result.size, result.bytes) == (len(data), 3 * MIB - 4096)


async def test_another_version_is_refused(source: Path, new_file: Callable[[int], int]) -> None:
    """A job for one version of an object gets no byte of another one."""
    (source / "shard").write_bytes(content(8192))
    fd = new_file(8192)
    async with running_pool() as pool:
        with pytest.raises(ObjectChangedError):
            await pool.run(str(source), OPTIONS, RangeJob("shard", '"other"', 0, 8192, 0), fd)
    assert not any(read_back(fd))


async def test_a_missing_object_says_so(source: Path, new_file: Callable[[int], int]) -> None:
    """An error crosses the process boundary as the class that it was."""
    async with running_pool() as pool:
        with pytest.raises(ObjectMissingError, match="nowhere"):
            await pool.run(str(source), OPTIONS, RangeJob("nowhere", None, 0, 1, 0), new_file(1))


@pytest.mark.parametrize("compression", ["zstd:3", "gz:1", "bz2", "br:2", "snappy", None])
async def test_a_stream_is_verified_and_decompressed(
    source: Path, new_file: Callable[[int], int], compression: str | None
) -> None:
    """A StreamJob of several parts gives the raw bytes, with all hashes compared."""
    data = content(7 * MIB + 123)
    stored = compress(compression, data) if compression else data
    (source / "shard").write_bytes(stored)
    fd, extents = new_file(len(data)), []
    async with running_pool(part_size=256 << 10) as pool:
        job = StreamJob(
            "shard",
            None,
            len(stored),
            len(data),
            compression,
            digests(["sha1"], stored) if compression else {},
            digests(["xxh3_64", "md5"], data),
            own_hash=True,
        )
        result = await pool.run(str(source), OPTIONS, job, fd, on_extent=lambda *each: extents.append(each))
    assert read_back(fd) == data
    assert union(extents) == [(0, len(data))]
    assert result.hashes_ok is True
    assert result.own_hash == f"md5:{hashlib.md5(data).hexdigest()}"
    assert result.bytes == len(stored)


@pytest.mark.parametrize("wrong", ["zip", "raw"])
async def test_a_wrong_hash_is_corruption(source: Path, new_file: Callable[[int], int], wrong: str) -> None:
    """A stream whose stored or raw bytes have another hash fails, naming object and hash."""
    data = content(MIB)
    stored = compress("zstd:1", data)
    (source / "shard").write_bytes(stored)
    hashes = {"zip": digests(["sha1"], stored), "raw": digests(["sha1"], data)} | {wrong: {"sha1": "0" * 40}}
    async with running_pool() as pool:
        job = StreamJob("shard", None, len(stored), len(data), "zstd:1", hashes["zip"], hashes["raw"])
        with pytest.raises(ShardCorruptError, match="shard: sha1"):
            await pool.run(str(source), OPTIONS, job, new_file(len(data)))


@pytest.mark.parametrize("off", [-1, 1])
async def test_a_wrong_raw_size_is_corruption(source: Path, new_file: Callable[[int], int], off: int) -> None:
    """A shard that inflates to more or less than the index says fails, and writes nothing past the declared size."""
    data = content(MIB)
    stored = compress("zstd:1", data)
    (source / "shard").write_bytes(stored)
    fd = new_file(0)
    async with running_pool() as pool:
        job = StreamJob("shard", None, len(stored), len(data) + off, "zstd:1")
        with pytest.raises(ShardCorruptError, match="shard: expected"):
            await pool.run(str(source), OPTIONS, job, fd)
    assert os.fstat(fd).st_size <= len(data) + min(off, 0)


@pytest.mark.parametrize("compression", ["zstd:3", None])
async def test_a_clipped_stream_is_its_part_from_zero(
    source: Path, new_file: Callable[[int], int], compression: str | None
) -> None:
    """With a clip, only that part is written, at the start of the file, and the rest is not waited for."""
    data = content(9 * MIB)
    stored = compress(compression, data) if compression else data
    (source / "shard").write_bytes(stored)
    fd, extents = new_file(0), []
    async with running_pool(part_size=256 << 10) as pool:
        job = StreamJob("shard", None, len(stored), len(data), compression, clip=(MIB + 5, 2 * MIB + 7))
        result = await pool.run(str(source), OPTIONS, job, fd, on_extent=lambda *each: extents.append(each))
    assert read_back(fd) == data[MIB + 5 : 2 * MIB + 7]
    assert union(extents) == [(0, MIB + 2)]
    assert result.bytes < len(stored)


async def test_frames_are_probed_fetched_and_clipped(source: Path, new_file: Callable[[int], int]) -> None:
    """A probe finds the seek table; a FramesJob then writes just what is asked for."""
    data = content(4 * MIB)
    stored = seekable(data, 64 << 10)
    (source / "shard").write_bytes(stored)
    fd, extents = new_file(len(data)), []
    async with running_pool() as pool:
        probe = await pool.run(str(source), OPTIONS, ProbeJob("shard", None, len(stored)))
        assert probe.seek_table is not None
        start, stop = MIB + 4096, 2 * MIB
        frames = tuple(probe.seek_table.frames_for(start, stop))
        job = FramesJob("shard", probe.etag, frames, clip=(start, stop), size=len(stored))
        result = await pool.run(str(source), OPTIONS, job, fd, on_extent=lambda *each: extents.append(each))
    assert read_back(fd, start, stop - start) == data[start:stop]
    assert union(extents) == [(start, stop - start)]
    assert result.bytes < MIB + (128 << 10)


async def test_a_damaged_frame_is_corruption(source: Path, new_file: Callable[[int], int]) -> None:
    """A frame whose checksum differs is refused."""
    data = content(MIB)
    stored = bytearray(seekable(data, 64 << 10))
    stored[1000] ^= 1
    (source / "shard").write_bytes(stored)
    async with running_pool() as pool:
        probe = await pool.run(str(source), OPTIONS, ProbeJob("shard", None, len(stored)))
        assert probe.seek_table is not None
        job = FramesJob("shard", None, tuple(probe.seek_table.frames_for(0, 4096)))
        with pytest.raises(ShardCorruptError, match="shard"):
            await pool.run(str(source), OPTIONS, job, new_file(len(data)))


async def test_ordinary_zstd_has_no_frames(source: Path) -> None:
    """A probe of a shard that is not seekable says so."""
    stored = compress("zstd:3", content(MIB))
    (source / "shard").write_bytes(stored)
    async with running_pool() as pool:
        assert (await pool.run(str(source), OPTIONS, ProbeJob("shard", None, len(stored)))).seek_table is None


async def test_a_seek_table_larger_than_the_tail_is_found(source: Path, new_file: Callable[[int], int]) -> None:
    """Thousands of frames: the table takes a second request, and the job that names them all a memfd."""
    data = content(3 * MIB)
    stored = seekable(data, 512)
    (source / "shard").write_bytes(stored)
    fd = new_file(len(data))
    async with running_pool() as pool:
        probe = await pool.run(str(source), OPTIONS, ProbeJob("shard", None, len(stored)))
        assert probe.seek_table is not None
        assert len(probe.seek_table) == 6144
        await pool.run(
            str(source), OPTIONS, FramesJob("shard", None, tuple(probe.seek_table.frames_for(0, len(data)))), fd
        )
    assert read_back(fd) == data


async def test_hashing_a_file(source: Path, new_file: Callable[[int], int]) -> None:
    """A HashJob says whether a cache file is what it should be, and what our own hash of it is."""
    data = content(MIB + 17)
    fd = new_file(len(data))
    os.pwrite(fd, data, 0)
    async with running_pool() as pool:
        good = await pool.run("", OPTIONS, HashJob(len(data), digests(["sha1"], data), own=True), fd)
        bad = await pool.run("", OPTIONS, HashJob(len(data), {"sha1": "0" * 40}), fd)
        short = await pool.run("", OPTIONS, HashJob(len(data) + 1), fd)
        none = await pool.run("", OPTIONS, HashJob(len(data), own=True), fd)
    assert (good.hashes_ok, bad.hashes_ok, short.hashes_ok, none.hashes_ok) == (True, False, False, None)
    assert good.own_hash == f"sha1:{hashlib.sha1(data).hexdigest()}"
    assert none.own_hash is not None


async def test_a_full_disk_names_the_file(source: Path) -> None:
    """A write that finds no room is a CacheFullError that says where."""
    (source / "shard").write_bytes(content(8192))
    fd = os.open("/dev/full", os.O_RDWR)
    async with running_pool() as pool:
        with pytest.raises(CacheFullError, match="/dev/full"):
            await pool.run(str(source), OPTIONS, StreamJob("shard", None, 8192, 8192, None), fd)
    os.close(fd)
