"""Memory that processes share by a name, for programs that use it themselves: no dataset here has any.

A name is a segment of the operating system (`shm_open`). Who creates it removes it at its exit; one whose creator was
killed stays, as it does with mosaicml-streaming.
"""

from __future__ import annotations

import atexit
import fcntl
import itertools
import os
import struct
import time
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory as Segment
from typing import TYPE_CHECKING, Any

import numpy as np

from streaming.compatibility.constants import LOCALS, TICK

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from streaming.order.world import World

__all__ = ["SharedArray", "SharedBarrier", "SharedMemory", "SharedScalar", "get_shm_prefix"]

# How often a segment is looked at, a tick apart, that its creator has not given its size yet.
GROWING = 1000


class SharedMemory:
    """A named segment.

    Args:
        name: Its name; by default one that nobody has.
        create: Make it (FileExistsError where it is) or take an existing one (FileNotFoundError where it is not); by
            default whichever works.
        size: Bytes of one that is made.
        auto_cleanup: Remove it, or let go of it, at this process's exit.
    """

    def __init__(
        self, name: str | None = None, create: bool | None = None, size: int = 0, auto_cleanup: bool = True
    ) -> None:
        self._creator = 0
        if create is not False:
            try:
                self.shm = Segment(name, create=True, size=size)
                self._creator = os.getpid()
            except FileExistsError:
                if create:
                    raise
        if not self._creator:
            self.shm = _existing(name)
        # the tracker would remove it when the first of its users exits
        resource_tracker.unregister(self.shm._name, "shared_memory")  # type: ignore[attr-defined]
        if auto_cleanup:
            atexit.register(self.cleanup)

    @property
    def buf(self) -> memoryview:
        """Its bytes. Raises ValueError after `cleanup`."""
        if self.shm.buf is None:
            raise ValueError("the segment is let go of: make another SharedMemory")
        return self.shm.buf

    def cleanup(self) -> None:
        """Let go of the segment; its creator removes it too."""
        with suppress(BufferError):  # an array of it is still in use: the mapping goes with that
            self.shm.close()
        if self._creator == os.getpid():
            self._creator = 0
            with suppress(FileNotFoundError):
                resource_tracker.register(self.shm._name, "shared_memory")  # type: ignore[attr-defined]
                self.shm.unlink()


def _existing(name: str | None) -> Segment:
    """Raises FileNotFoundError. A segment has no size for a moment after its creator has made its name."""
    for _ in range(GROWING):
        with suppress(ValueError):
            return Segment(name, create=False)
        time.sleep(TICK)
    return Segment(name, create=False)


class SharedArray:
    """An array in a named segment.

    Args:
        shape: Its shape, or its length.
        dtype: A numpy scalar type.
        name: The segment's name.
    """

    def __init__(self, shape: int | tuple[int, ...], dtype: type, name: str) -> None:
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.dtype = dtype
        self.name = name
        self.shm = SharedMemory(name=name, size=int(np.prod(self.shape)) * np.dtype(dtype).itemsize)

    def numpy(self) -> NDArray[Any]:
        """The array itself; what is written into it, others see."""
        return np.ndarray(self.shape, dtype=self.dtype, buffer=self.shm.buf)

    def __len__(self) -> int:
        """Entries along the first axis."""
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:
        return self.numpy()[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        self.numpy()[index] = value


class SharedScalar:
    """One number in a named segment."""

    def __init__(self, dtype: type, name: str) -> None:
        self.dtype = dtype
        self.name = name
        self.arr = SharedArray(1, dtype, name)

    def get(self) -> Any:
        """The number."""
        return self.arr[0]

    def set(self, value: Any) -> None:
        """Change it."""
        self.arr[0] = value


class SharedBarrier:
    """Where processes wait for each other; may be used again and again.

    Args:
        filelock_path: Kept as an attribute; the lock is on the segment itself, and no file is made.
        shm_name: The segment's name.
    """

    def __init__(self, filelock_path: str, shm_name: str) -> None:
        self.filelock_path = filelock_path
        self._counts = SharedArray(2, np.int64, shm_name)  # who has come, and how often all have

    @contextmanager
    def _locked(self) -> Iterator[NDArray[Any]]:
        fd = os.open(f"/proc/self/fd/{self._counts.shm.shm._fd}", os.O_RDWR)  # type: ignore[attr-defined]
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield self._counts.numpy()
        finally:
            os.close(fd)

    def __call__(self, num_procs: int) -> None:
        """Return when so many processes have called this."""
        with self._locked() as counts:
            turn = int(counts[1])
            counts[0] += 1
            if counts[0] == num_procs:
                counts[:] = 0, turn + 1
        while self._counts[1] == turn:
            time.sleep(TICK)


def get_shm_prefix(
    streams_local: Sequence[str], streams_remote: Sequence[str | None], world: World, retry: int = 100
) -> tuple[int, SharedMemory]:
    """A number for the names of a run's own segments, and the segment that holds it as long as it lives.

    The node's first process takes the first number that is free; the others find it by `streams_local`, which must be
    the same for them and another for every other run. `streams_remote` does not matter.

    Raises ValueError where `streams_local` names a folder twice, RuntimeError where the first process has taken no
    number after `retry` looks, 7 ms apart.
    """
    again = sorted({folder for folder in streams_local if streams_local.count(folder) > 1})
    if again:
        raise ValueError(f"Reused local directory: {again}. Provide a different one.")
    claim = "\0".join(streams_local).encode()
    if world.is_local_leader:
        return _claimed(claim)
    for _ in range(1 + retry):
        if (found := _found(claim)) is not None:
            return found
        time.sleep(TICK)
    raise RuntimeError(
        "shared memory prefix was not registered by local leader: give the same `local` to every rank, and make the "
        "leader's first"
    )


# As mosaicml-streaming writes and reads it, whose runs count with ours: how long the claim is with this number, the
# claim, a zero byte, the number as text. Behind that, who has taken it.
_SIZE, _PID = struct.Struct("<i"), struct.Struct("<Q")


def _claimed(claim: bytes) -> tuple[int, SharedMemory]:
    for number in itertools.count():
        text = _text(claim, number)
        stop = _SIZE.size + len(text)
        with suppress(FileExistsError, PermissionError):
            held = SharedMemory(_locals(number), create=True, size=stop + _PID.size)
            held.buf[_SIZE.size : stop] = text
            _PID.pack_into(held.buf, stop, os.getpid())
            _SIZE.pack_into(held.buf, 0, stop)  # last: whoever sees it sees all
            return number, held
    raise AssertionError("counting does not end")


def _text(claim: bytes, number: int) -> bytes:
    return claim + f"\0{number}".encode()


def _found(claim: bytes) -> tuple[int, SharedMemory] | None:
    for number in itertools.count():
        try:
            held = SharedMemory(_locals(number), create=False)
        except (PermissionError, ValueError):
            continue
        except FileNotFoundError:
            return None
        if (pid := _taken_by(bytes(held.buf), _text(claim, number))) and os.path.exists(f"/proc/{pid}"):
            return number, held
        held.cleanup()
    raise AssertionError("counting does not end")


def _taken_by(segment: bytes, text: bytes) -> int:
    """Whose claim this is; 0 for another claim, or mosaicml-streaming's. A run that was killed leaves its behind."""
    stop = _SIZE.size + len(text)
    if not segment.startswith(_SIZE.pack(stop) + text) or len(segment) < stop + _PID.size:
        return 0
    pid: int = _PID.unpack_from(segment, stop)[0]
    return pid


def _locals(number: int) -> str:
    return f"{number:06}_{LOCALS}"
