"""Loads files into a cache, as a reader would that wants all of them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mdsfs.engine.options import LEAST_DATA
from streaming.errors import CacheLimitError, ObjectChangedError
from streaming.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .doors import EngineDoor
    from .folder import Contents, Folder

__all__ = ["Warmed", "check_fits", "warm"]

# Of one request: a shard that can be read by range arrives in pieces that the progress can show.
STEP = 8 << 20
# The store has shorter ones of its own; this one is for an engine that has much else to do.
PATIENCE = 600.0


@dataclass(frozen=True, slots=True)
class Warmed:
    """Files and bytes that are in the cache now, or lie on a local disk and need not be."""

    files: int
    bytes: int


def check_fits(door: EngineDoor, chosen: Sequence[tuple[Folder, Contents, Sequence[int]]]) -> None:
    """Raise CacheLimitError where the files can't all be in the cache at once."""
    wanted = sum(_cached_bytes(folder, contents, numbers) for folder, contents, numbers in chosen)
    if wanted > door.limit - LEAST_DATA:
        count = sum(len(numbers) for _, _, numbers in chosen)
        limit = format_size(door.limit)
        raise CacheLimitError(f"{count} files of {format_size(wanted)} for a cache limit of {limit}: choose fewer")


def _cached_bytes(folder: Folder, contents: Contents, numbers: Sequence[int]) -> int:
    """What the files take in the cache: nothing for those that are read where they lie, on a local disk."""
    files = contents.tables.files[list(numbers)]
    local = "://" not in folder.url or folder.url.startswith("file://")
    return int(files["size"][files["compression"] >= 0 if local else slice(None)].sum())


def warm(
    door: EngineDoor,
    chosen: Sequence[tuple[Folder, Contents, Sequence[int]]],
    *,
    jobs: int,
    begin: Callable[[int], None] = lambda _total: None,
    progress: Callable[[int], None] = lambda _count: None,
) -> Warmed:
    """Load the chosen files, `jobs` at a time. Raises what keeps one from being loaded; the others before it stay."""
    tasks = []
    for folder, contents, numbers in chosen:
        dataset = _open(door, folder)
        tasks += [(dataset, number, int(contents.tables.files["size"][number])) for number in numbers]
    begin(sum(size for _, _, size in tasks))
    stopping = threading.Event()

    def load(task: tuple[int, int, int]) -> int:
        dataset, number, size = task
        for at in range(0, size, STEP):
            if stopping.is_set():
                break
            length = min(STEP, size - at)
            with door.client.held(dataset, [(number, at, length)], timeout=PATIENCE) as wanted:
                if wanted.direct:
                    raise CacheLimitError("there is no room for more: all that is in the cache is in use or pinned")
            progress(length)
        return size

    with ThreadPoolExecutor(jobs, thread_name_prefix="warm") as pool:
        try:
            sizes = list(pool.map(load, tasks))
        except BaseException:
            stopping.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return Warmed(len(sizes), sum(sizes))


def _open(door: EngineDoor, folder: Folder) -> int:
    """The number under which this connection may read a folder's dataset."""
    listing = folder.kind != "mds"
    source = door.client.open(folder.source if listing else folder.url, dict(folder.identity), list=listing)
    numbers = [each.dataset for each in source.datasets if each.kind == folder.kind and each.url == folder.url]
    now = {each.name: each for each in door.folders()}
    if not numbers or folder.name not in now or not now[folder.name].users:
        raise ObjectChangedError(f"{folder.url} is no longer what the cache holds of it: mount it again")
    return numbers[0]
