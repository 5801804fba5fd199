"""Named shared memory of programs that use it themselves."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from streaming.base.shared import SharedArray, SharedBarrier, SharedMemory, SharedScalar

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def name() -> Iterator[str]:
    """A prefix for segments; none is left."""
    prefix = f"streaming-tests-{os.getpid()}"
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
