"""Pins: files of an engine's cache that stay as they are while somebody looks at them.

A pin is a shared lock (flock) on the cache file, held by the descriptor that the map keeps; the engine takes away only
what it can lock exclusively. So a pin lives exactly as long as the map, and that as long as anything that looks into
it: views that a program keeps hold their shard, and a process that is killed holds nothing. A forked child has its
parent's maps, and with them the pins; it lets go of those that no view of its own copy looks into.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from streaming.sources import map_file

if TYPE_CHECKING:
    from collections.abc import Callable

    from streaming.engine.client import OpenedFile

__all__ = ["pinned_map"]


def pinned_map(open_file: Callable[[], OpenedFile], is_whole: Callable[[], bool]) -> Any | None:
    """A map of a cache file with a pin on it; None where the engine is about to take some of it away.

    `open_file` gives a descriptor of its own: a lock belongs to that. `is_whole`: whether all of the file is in the
    cache, asked when the lock is held, from when on the answer stays.
    """
    opened = open_file()
    try:
        with suppress(BlockingIOError):
            fcntl.flock(opened.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if is_whole():
                return map_file(opened.fd, opened.size)
        return None
    finally:
        os.close(opened.fd)
