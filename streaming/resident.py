"""How much of its maps a process has in its page table, and letting go of it.

Pages of a mapped file belong to the kernel's cache, but as long as a process has them mapped they count as its own: an
epoch over 100 GB would make a worker look as if it had taken all of that, and a memory controller may act on it. So
now and then the pages are taken out of the page table. They stay in the kernel's cache; looking at one again costs a
minor fault, and views stay valid. Of a small dataset the faults are saved: what the kernel has is mapped at once.
"""

from __future__ import annotations

import mmap
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["SMALL", "PageWatch", "map_what_is_cached"]

# Up to here a dataset stays mapped: later epochs never fault again.
SMALL = 1 << 30
# Mapped bytes that an iteration over a larger one may bring into its process's page table.
MOST = 256 << 20
# Places of a file that are looked at to know whether it is in memory.
PROBES = 16
MADV_POPULATE_READ = 22  # of Linux 5.14; the module mmap does not name it
# How many bytes are read between two looks: one takes 5 µs.
STEP = 64 << 20


class PageWatch:
    """Looks after the maps of one dataset while it is iterated.

    Args:
        samples: Samples of the dataset.
        total: Bytes of them.
        maps: The maps that are open now.
    """

    def __init__(self, samples: int, total: int, maps: Callable[[], Iterable[mmap.mmap]]) -> None:
        self._every = max(samples * min(STEP, MOST // 4) // max(total, 1), 1) if total > SMALL else sys.maxsize
        self._left = self._every
        self._most = _mapped_bytes() + MOST
        self._maps = maps

    def have_read(self, samples: int) -> None:
        """So many samples more were read."""
        self._left -= samples
        if self._left <= 0:
            self._left = self._every
            if _mapped_bytes() > self._most:
                for each in self._maps():
                    each.madvise(mmap.MADV_DONTNEED)


def map_what_is_cached(raw: mmap.mmap, fd: int, *, in_memory: bool = False) -> None:
    """Bring all pages of a map of a file into the page table if it is, or seems to be, in memory; read nothing else.

    50 µs a MiB; one fault for each 16 pages, when they are first looked at, costs the reader of a sample more than
    the sample itself.
    """
    byte = bytearray(1)
    with suppress(OSError):  # not in memory; or a filesystem, or a kernel, that does not know this
        for place in range(0 if in_memory else PROBES):
            os.preadv(fd, [byte], place * (len(raw) - 1) // (PROBES - 1), os.RWF_NOWAIT)
        raw.madvise(MADV_POPULATE_READ)


def _mapped_bytes() -> int:
    """Bytes of files in this process's page table."""
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[2]) * mmap.PAGESIZE
