"""How a memory limit is shared out: what the engine and its fetchers may keep on their heaps and in memory files. Pure.

Not counted is what the kernel can take back at any time: the page cache of the cache files, tables mapped from them.
"""

from __future__ import annotations

from dataclasses import dataclass

from streaming.errors import CacheLimitError

__all__ = ["BUFFERED", "LEAST", "LEAST_PART", "Shares", "share_out"]

MIB = 1 << 20
# Interpreter, libraries and bookkeeping, with a margin: 50 to 70 MiB were measured for each.
ENGINE_BASE = 96 * MIB
FETCHER_BASE = 80 * MIB
# A stream reads parts of up to this size ahead into memory; larger ones are for ranges, which need none.
BUFFERED = 4 * MIB
# Beside a thread's part: its two buffers, and the frame or window that it decompresses.
PER_THREAD = 9 * MIB
LEAST_PART, LEAST_PASSING = 1 * MIB, 8 * MIB
# What is passed by the cache at once, when nobody says how much memory there is.
PASSING, EDGES = 64 * MIB, 4096
# A kept edge is at most a block, and what remembers it.
EDGE = 4096 + 256
LEAST = ENGINE_BASE + FETCHER_BASE + PER_THREAD + LEAST_PART + LEAST_PASSING + 256 * EDGE


@dataclass(frozen=True, slots=True)
class Shares:
    """What each part may use. `passing`: bytes of memory files under way; `edges`: parts of blocks kept."""

    processes: int
    threads: int
    part_size: int
    passing: int = PASSING
    edges: int = EDGES

    @property
    def total(self) -> int:
        """Bytes in all."""
        fetchers = self.processes * (FETCHER_BASE + self.threads * _of_thread(self.part_size))
        return ENGINE_BASE + fetchers + self.passing + self.edges * EDGE


def share_out(limit: int | None, processes: int, threads: int, part_size: int) -> Shares:
    """The shares within a limit in bytes: as asked where that fits, else less of it, down to one thread.

    Raises CacheLimitError below the least with which an engine can work.
    """
    wanted = Shares(processes, threads, part_size)
    if limit is None or wanted.total <= limit:
        return wanted
    if limit < LEAST:
        raise CacheLimitError(f"a memory limit of {limit} bytes is too small: the least is {LEAST} bytes")
    passing = max(LEAST_PASSING, min(PASSING, limit // 8))
    edges = max(256, min(EDGES, limit // 64 // EDGE))
    for count in range(processes, 0, -1):
        for part in _halves(part_size):
            fixed = Shares(count, 0, part, passing, edges).total
            fits = min(threads, (limit - fixed) // (count * _of_thread(part)))
            # fewer threads cost more than smaller parts, and those more than a process less
            if fits >= min(threads, 4) or (count == 1 and part == LEAST_PART and fits >= 1):
                return Shares(count, fits, part, passing, edges)
    return Shares(1, 1, LEAST_PART, LEAST_PASSING, 256)


def _of_thread(part_size: int) -> int:
    return PER_THREAD + min(part_size, BUFFERED)


def _halves(part_size: int) -> list[int]:
    found = [max(part_size, LEAST_PART)]
    while found[-1] // 2 >= LEAST_PART:
        found.append(found[-1] // 2)
    return [*found, LEAST_PART] if found[-1] != LEAST_PART else found
