"""Named shared memory of programs that use it themselves."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from streaming.base.shared import SharedArray, SharedBarrier, SharedMemory, SharedScalar, get_shm_prefix
from streaming.base.world import World
from tests.peer.alone import alone

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def name() -> Iterator[str]:
    """A prefix for segments; none is left."""
    prefix = f"streaming-tests-{os.getpid()}-"  # no process's number begins another's name
    yield prefix
    assert not list(Path("/dev/shm").glob(f"{prefix}*"))


def test_arrays_and_scalars_of_one_name_are_one(name: str) -> None:
    """What is written through one is read through the other, and the creator removes it."""
    first, second = SharedArray((2, 3), np.int32, name), SharedArray((2, 3), np.int32, name)
    first[1, 2] = 7
    assert second.numpy().tolist() == [[0, 0, 0], [0, 0, 7]]
    assert len(second) == 2
    scalar = SharedScalar(np.float64, f"{name}-s")
    scalar.set(0.5)
    assert SharedScalar(np.float64, f"{name}-s").get() == 0.5
    second.shm.cleanup()
    assert first[1, 2] == 7
    first.shm.cleanup()
    scalar.arr.shm.cleanup()


def test_creating_and_attaching(name: str) -> None:
    """`create` decides what happens where the segment is, or is not."""
    with pytest.raises(FileNotFoundError):
        SharedMemory(name, create=False)
    made = SharedMemory(name, create=True, size=100)
    with pytest.raises(FileExistsError):
        SharedMemory(name, create=True, size=100)
    made.cleanup()


def _rounds(barrier: SharedBarrier, turns: SharedArray, number: int) -> None:
    for turn in range(20):
        turns[number] = turn
        barrier(2)
        assert turns[1 - number] == turn
        barrier(2)


def test_a_barrier_between_processes(name: str, tmp_path: Path) -> None:
    """Nobody passes before all have come, round after round; no lock file is made."""
    barrier = SharedBarrier(str(tmp_path / "lock"), f"{name}-b")
    turns = SharedArray(2, np.int64, f"{name}-t")
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_rounds, args=(barrier, turns, number)) for number in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    assert not list(tmp_path.iterdir())
    barrier._counts.shm.cleanup()
    turns.shm.cleanup()


@alone()
def test_a_claim_is_one_that_the_peer_can_read(tmp_path: Path) -> None:
    """Its size, its folders and its number first, as mosaicml-streaming packs and looks through them; any path."""
    folder = str(tmp_path / "ž" / ("a" * 200))
    number, segment = get_shm_prefix([folder], [None], World(1, 1, 1, 0))
    try:
        data = bytes(segment.buf)
    finally:
        segment.cleanup()
    size = int(np.frombuffer(data[:4], np.int32)[0])
    assert data[4:size].decode().split("\0") == [folder, str(number)]


@alone()
def test_other_programs_segments_are_passed_over(tmp_path: Path) -> None:
    """Whatever stands under a number that another program has taken."""
    made: list[SharedMemory] = []
    for number in range(1000):
        with contextlib.suppress(FileExistsError):
            made.append(SharedMemory(f"{number:06}_locals", create=True, size=1))
            break
    try:
        with pytest.raises(RuntimeError, match="was not registered by local leader"):
            get_shm_prefix([str(tmp_path)], [None], World(1, 2, 1, 1), retry=0)
    finally:
        made[0].cleanup()


def _follow(folder: str, told: multiprocessing.Queue[int]) -> None:
    number, _ = get_shm_prefix([folder], [None], World(1, 2, 1, 1))
    told.put(number)


@alone()
def test_a_prefix_for_the_names_of_a_run(tmp_path: Path) -> None:
    """Two runs at once take two numbers; a rank finds its own run's, and hears where nobody has taken one."""
    leader = World(1, 2, 1, 0)
    runs = [str(tmp_path / name) for name in "ab"]
    held = [get_shm_prefix([folder], [None], leader) for folder in runs]
    try:
        assert held[0][0] != held[1][0]
        context = multiprocessing.get_context("spawn")
        told = context.Queue()
        follower = context.Process(target=_follow, args=(runs[1], told))
        follower.start()
        assert told.get(timeout=60) == held[1][0]
        follower.join()
    finally:
        for _, segment in held:
            segment.cleanup()
    with pytest.raises(RuntimeError, match="was not registered by local leader"):
        get_shm_prefix([runs[0]], [None], World(1, 2, 1, 1), retry=0)
    with pytest.raises(ValueError, match=r"Reused local directory: \['x'\]"):
        get_shm_prefix(["x", "x"], [None, None], leader)
