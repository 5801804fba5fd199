"""What is counted beside the work: what each client does, in which states the shards are, what the processes use.

Everything here is asked for by status and decides nothing.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mdsfs.metrics.timings import checked_series

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .cache.dataset import Dataset
    from .cache.ledger import Ledger

__all__ = ["Activity", "process_figures", "shard_states"]

BLOCK = 4096
_PAGE = os.sysconf("SC_PAGE_SIZE")
# What a client may tell of itself, all of it whole numbers.
REPORTED = ("reads_at_once", "reads_asked", "reads_waiting", "reads_failed", "bytes_read")


@dataclass(slots=True)
class Activity:
    """One client's reads as the engine sees them, and what the client tells about those that it does not see."""

    wants: int = 0
    """Requests for ranges."""
    hits: int = 0
    """Of these, answered from the cache at once."""
    waiting: int = 0
    ended: float = 0.0
    begun: float = 0.0
    """Sums of the clock at the beginnings and the ends of waits; what waits now has a beginning only."""
    wanted_bytes: int = 0
    touched: int = 0
    """Pieces that were read from the cache without asking."""
    last: tuple[Dataset, int, int] | None = None
    """Dataset, file and offset of the last want."""
    reported: dict[str, int] = field(default_factory=dict)
    timings: list[dict[str, Any]] = field(default_factory=list)

    @contextlib.contextmanager
    def wait(self) -> Iterator[None]:
        """While the block runs, one want of this client waits."""
        self.waiting += 1
        self.begun += time.perf_counter()
        try:
            yield
        finally:
            self.waiting -= 1
            self.ended += time.perf_counter()

    @property
    def waited(self) -> float:
        """Seconds that wants have waited in all, those that still wait included."""
        return max(0.0, self.ended + self.waiting * time.perf_counter() - self.begun)

    def note(self, dataset: Dataset, ranges: Iterable[tuple[int, int, int]]) -> None:
        """A want for these ranges [file, start, stop] has come."""
        for file, start, stop in ranges:
            self.wanted_bytes += stop - start
            self.last = (dataset, file, start)

    def report(self, message: dict[str, Any]) -> None:
        """Take what the client says; it is shown, never relied on."""
        self.reported = {
            name: value for name in REPORTED if type(value := message.get(name)) is int and 0 <= value < 1 << 62
        }
        self.timings = checked_series(message.get("timings"))

    def totals(self, *, is_mount: bool) -> dict[str, float]:
        """What adds up over clients. Mounts count their reads themselves, of others the engine hears by `touch`."""
        return {
            "at_once": self.reported.get("reads_at_once", 0) if is_mount else self.touched,
            "mount_bytes": self.reported.get("bytes_read", 0),
            "waited_seconds": self.waited,
        }

    def shown(self) -> dict[str, Any]:
        """For status."""
        found: dict[str, Any] = {
            "wants": self.wants,
            "hits": self.hits,
            "waiting": self.waiting,
            "waited_seconds": round(self.waited, 3),
            "wanted_bytes": self.wanted_bytes,
            "touched": self.touched,
        }
        if self.last is not None:
            dataset, file, offset = self.last
            found["position"] = f"{dataset.tables.name(file)} at {offset}"
        return found


def shard_states(dataset: Dataset, ledger: Ledger) -> dict[str, int]:
    """How many files are complete, partial, absent; beside that how many are being fetched, and how many are broken.

    Counted by blocks of which something is there: of a file that counts as complete, parts of some may be missing.
    """
    resident = ledger.resident_blocks_of(dataset.number)
    blocks = -(-np.asarray(dataset.tables.files["size"], np.int64) // BLOCK)
    complete = int(np.count_nonzero(resident >= blocks))
    something = int(np.count_nonzero((resident > 0) & (resident < blocks)))
    return {
        "complete": complete,
        "partial": something,
        "absent": len(blocks) - complete - something,
        "fetching": sum(1 for work in dataset.work.values() if work.flights),
        "failed": sum(1 for work in dataset.work.values() if work.error is not None),
    }


def process_figures(children: Iterable[int]) -> dict[str, Any]:
    """Memory and processor time of this process, memory of its fetchers."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    fds = 0
    with contextlib.suppress(OSError):
        fds = len(os.listdir("/proc/self/fd"))
    return {
        "resident_bytes": _resident(os.getpid()),
        "peak_resident_bytes": used.ru_maxrss * 1024,
        "fetchers_resident_bytes": sum(_resident(pid) for pid in children),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
        "open_descriptors": fds,
    }


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError, ValueError):
        return 0  # it has just ended
