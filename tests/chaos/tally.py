"""What a reader has done so far, in a file that the run maps as well: it outlives the reader, and tells a stuck one."""

from __future__ import annotations

import mmap
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Tally"]

_NAMES = ("since", "stopped", "reads", "bytes", "longest", "passes", "ending", "views")


@dataclass
class Tally:
    """Fields are u64 in shared memory; each has one writer.

    since: when the read under way began (ns of the monotonic clock), 0 between reads. stopped: ns that the reader was
    stopped in all; longest: ns of the longest read, without those. passes: whole epochs; views: pinned values that were
    looked at a second time. ending: the run tells the reader to end after this read. The rest counts what was right.
    """

    path: Path
    _fields: memoryview = field(init=False, repr=False)

    def __post_init__(self) -> None:
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, mmap.PAGESIZE)
            self._fields = memoryview(mmap.mmap(fd, mmap.PAGESIZE)).cast("Q")
        finally:
            os.close(fd)

    def __getitem__(self, name: str) -> int:
        return int(self._fields[_NAMES.index(name)])

    def __setitem__(self, name: str, value: int) -> None:
        self._fields[_NAMES.index(name)] = value

    def begin(self) -> None:
        """A read begins."""
        self._stopped = self["stopped"]
        self["since"] = time.monotonic_ns()

    def end(self) -> float:
        """It has ended; its seconds, without those for which the reader was stopped."""
        taken = time.monotonic_ns() - self["since"] - (self["stopped"] - self._stopped)
        self["since"] = 0
        self["longest"] = max(self["longest"], taken)
        return taken / 1e9

    def count(self, size: int) -> None:
        """So many bytes were right."""
        self["bytes"] += size
        self["reads"] += 1
