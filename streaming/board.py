"""What the processes of one rank share: which epoch is next, and where to resume. No name anywhere, gone with them.

A rank's main process and its DataLoader workers each have a copy of the dataset. The main process is asked for the
state of what workers iterate, and told where persistent workers shall go on. Both is on one page of shared memory (a
memfd), which forked and spawned processes inherit. Ranks that were forked, or spawned, from one process inherit one
page too: each writes into a row of its own, found by the pid of the rank's main process.
"""

from __future__ import annotations

import fcntl
import mmap
import multiprocessing
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Board"]

_ROWS = 128
_STATE = ("epoch", "sample_in_epoch", "num_canonical_nodes", "shuffle_seed", "initial_physical_nodes")
_ROW = np.dtype(
    [
        ("owner", "<i8"),  # pid of the rank's main process, 0: a free row
        ("next_epoch", "<i8"),
        # which round of workers began the epoch before the next one: their common seed, and which round of theirs
        ("seed", "<i8"),
        ("round", "<i8"),
        ("resuming", "<i8"),  # whether a state was loaded
        *((name, "<i8") for name in _STATE),
    ]
)
_NONE = -1


class Board:
    """The shared page of one dataset; picklable while a process is being spawned."""

    def __init__(self) -> None:
        self._adopt(os.memfd_create("streaming-board", os.MFD_CLOEXEC))
        self._rounds: dict[int, int] = {}

    def _adopt(self, fd: int) -> None:
        size = -(-_ROWS * _ROW.itemsize // mmap.PAGESIZE) * mmap.PAGESIZE
        os.ftruncate(fd, size)
        self._fd = fd
        self._page = mmap.mmap(fd, size)
        self._rows = np.frombuffer(self._page, _ROW, _ROWS)

    def __del__(self) -> None:
        if (fd := getattr(self, "_fd", -1)) >= 0:
            os.close(fd)

    def __getstate__(self) -> dict[str, Any]:
        from multiprocessing.context import get_spawning_popen

        state: dict[str, Any] = {"row": self._mine().copy()}
        if get_spawning_popen() is not None:
            from multiprocessing.reduction import DupFd

            state["fd"] = DupFd(self._fd)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._rounds = {}
        if "fd" in state:
            self._adopt(state["fd"].detach())
            return
        self._adopt(os.memfd_create("streaming-board", os.MFD_CLOEXEC))
        row = state["row"]
        row["owner"] = _owner()
        self._rows[0] = row

    @contextmanager
    def _locked(self) -> Iterator[Any]:
        fcntl.lockf(self._fd, fcntl.LOCK_EX)
        try:
            yield self._mine()
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN)

    def _mine(self) -> Any:
        """The row of this process's rank; a new rank starts where the process that made the dataset was."""
        owner = _owner()
        owners = self._rows["owner"]
        found = np.flatnonzero(owners == owner)
        if len(found):
            return self._rows[found[0]]
        free = np.flatnonzero(owners == 0)
        at = int(free[0]) if len(free) else _ROWS - 1
        if at:
            self._rows[at] = self._rows[0]
        self._rows["owner"][at] = owner
        return self._rows[at]

    # ---- epochs ------------------------------------------------------------------------------------------------------

    @property
    def next_epoch(self) -> int:
        """The epoch that the next iteration starts, if no state was loaded."""
        return int(self._mine()["next_epoch"])

    @next_epoch.setter
    def next_epoch(self, epoch: int) -> None:
        with self._locked() as row:
            row["next_epoch"] = epoch

    def begin(self) -> tuple[int, dict[str, int | None] | None]:
        """Start an epoch: its number, and the state if it is one to go on in. Workers of one round start the same."""
        key = self._round()
        with self._locked() as row:
            if key is not None and key == (int(row["seed"]), int(row["round"])):
                epoch = int(row["next_epoch"]) - 1
            else:
                epoch = int(row["next_epoch"])
                if row["resuming"] and row["epoch"] >= epoch:
                    epoch = int(row["epoch"])
                row["next_epoch"] = epoch + 1
                row["seed"], row["round"] = key or (0, 0)
            return epoch, self._state(row, epoch)

    def _round(self) -> tuple[int, int] | None:
        """Which round of a loader's workers this one is in; None in a main process."""
        data = sys.modules.get("torch.utils.data")
        info = data.get_worker_info() if data is not None else None
        if info is None:
            return None
        seed = (info.seed - info.id) & 0x7FFFFFFFFFFFFFFF
        self._rounds[seed] = self._rounds.get(seed, 0) + 1
        return seed, self._rounds[seed]

    # ---- resuming ----------------------------------------------------------------------------------------------------

    def load(self, state: dict[str, Any]) -> None:
        """Have the next epoch go on from a state."""
        with self._locked() as row:
            for name in _STATE:
                value = state.get(name)
                row[name] = _NONE if value is None else int(value)
            row["resuming"] = 1

    def loaded(self, epoch: int) -> dict[str, int | None] | None:
        """The state that was loaded, as it applies to an epoch."""
        return self._state(self._mine(), epoch)

    def _state(self, row: Any, epoch: int) -> dict[str, int | None] | None:
        """Nodes and seed stay what they were when the run began; the place in the epoch is of one epoch only."""
        if not row["resuming"]:
            return None
        state = {name: None if row[name] == _NONE else int(row[name]) for name in _STATE}
        if state["epoch"] != epoch:
            state["sample_in_epoch"] = 0
        return state


def _owner() -> int:
    """The pid of the rank's main process: a DataLoader worker's parent, else this one."""
    data = sys.modules.get("torch.utils.data")
    if data is not None and data.get_worker_info() is not None:
        parent = multiprocessing.parent_process()
        if parent is not None and parent.pid is not None:
            return parent.pid
    return os.getpid()
