"""How much of its maps a process has in its page table, and letting go of it.

Pages of a mapped file belong to the kernel's cache, but as long as a process has them mapped they count as its own: an
epoch over 100 GB would make a worker look as if it had taken all of that, and a memory controller may act on it. So
now and then the pages are taken out of the page table. They stay in the kernel's cache; looking at one again costs a
minor fault, and views stay valid.
"""

from __future__ import annotations

import mmap
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["PageWatch"]

# Up to here a dataset stays mapped: later epochs never fault again.
SMALL = 1 << 30
# Mapped bytes that an iteration over a larger one may bring into its process's page table.
MOST = 256 << 20
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


def _mapped_bytes() -> int:
    """Bytes of files in this process's page table."""
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[2]) * mmap.PAGESIZE
