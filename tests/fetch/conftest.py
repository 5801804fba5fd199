"""A source folder, a pool of real fetcher processes, and files to write into."""

from __future__ import annotations

import os
import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from mdsfs.engine.fetching.pool import FetcherPool
from streaming.remote import RemoteOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

OPTIONS = RemoteOptions(attempts=2, total_timeout=20)
MIB = 1 << 20


def content(size: int, seed: int = 1) -> bytes:
    """Half random, half compressible bytes."""
    rng = random.Random(seed)
    pieces = (rng.randbytes(3000) + bytes([rng.randrange(256)]) * 3000 for _ in range(0, size, 6000))
    return b"".join(pieces)[:size]


@asynccontextmanager
async def running_pool(processes: int = 1, threads: int = 4, part_size: int = MIB) -> AsyncIterator[FetcherPool]:
    """A pool that serves as long as the block runs."""
    pool = FetcherPool(processes, threads, part_size)
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.serve)
        yield pool
        nursery.cancel_scope.cancel()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


@pytest.fixture
def new_file(tmp_path: Path) -> Iterator[Callable[[int], int]]:
    """Makes sparse files of a size; returns read-write descriptors, closed at the end."""
    fds: list[int] = []

    def make(size: int) -> int:
        fd = os.open(tmp_path / f"file-{len(fds)}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        os.ftruncate(fd, size)
        fds.append(fd)
        return fd

    yield make
    for fd in fds:
        os.close(fd)
