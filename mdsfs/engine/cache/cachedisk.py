"""Whether the disk under the cache takes writes: others may fill it, or it may turn read-only.

While it does not, nothing is written: what is in the cache is served from there, the rest is passed by. Once a second
one fill may try again, where the filesystem itself says that it could work.
"""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

import trio

from ..health import DISK, Health

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["CacheDisk"]

RETRY_SECONDS = 1.0
# What a fill needs beside its data: the file itself, extent tree, state and bitmap pages.
SLACK = 1 << 20
# Measuring what the cache takes walks its files: of the time that this takes, so many parts are left between two walks.
REST = 20


class CacheDisk:
    """The disk under one cache directory, as far as writing is concerned."""

    def __init__(self, root: Path, health: Health) -> None:
        self._root = str(root)
        self._health = health
        self._retry_at = 0.0
        self._measured = 0
        self._measure_at = 0.0

    def __repr__(self) -> str:
        return f"CacheDisk({self._root}, {'failing' if self.is_failing else 'well'})"

    @property
    def is_failing(self) -> bool:
        """Whether the last write was refused."""
        return self._health.is_failing(DISK, self._root)

    def refused(self, error: Exception) -> None:
        """A write has failed."""
        self._health.failed(
            DISK, self._root, f"{error}; until the disk takes writes again, what is not cached is passed by the cache"
        )
        self._retry_at = trio.current_time() + RETRY_SECONDS

    def worked(self) -> None:
        """A fill has reached the disk."""
        self._health.works(DISK, self._root)

    def takes(self, size: int) -> bool:
        """Whether it is worth trying to write so many bytes."""
        if not self.is_failing:
            return True
        now = trio.current_time()
        if now < self._retry_at:
            return False
        self._retry_at = now + RETRY_SECONDS
        try:
            found = os.statvfs(self._root)
        except OSError:
            return False
        free = found.f_bfree if os.geteuid() == 0 else found.f_bavail
        return free * found.f_frsize >= size + SLACK and self._takes_a_block()

    def _takes_a_block(self) -> bool:
        # A filesystem that the kernel has shut after an error calls itself writable still.
        try:
            with tempfile.TemporaryFile(dir=self._root) as file:
                os.pwrite(file.fileno(), bytes(4096), 0)
        except OSError:
            return False
        return True

    def room(self) -> dict[str, int] | None:
        """Bytes of the filesystem and what is free of them for us; None where it does not say."""
        try:
            found = os.statvfs(self._root)
        except OSError:
            return None
        return {"size_bytes": found.f_blocks * found.f_frsize, "free_bytes": found.f_bavail * found.f_frsize}

    async def taken(self, measure: Callable[[], int]) -> int:
        """Bytes that the cache takes on the disk, as `measure` says in a thread; of a large one, not at every call."""
        started = trio.current_time()
        if started >= self._measure_at:
            self._measured = await trio.to_thread.run_sync(measure)
            now = trio.current_time()
            self._measure_at = now + REST * (now - started)
        return self._measured
