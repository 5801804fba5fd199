"""What commands ask of the cache as a whole: what is there, what must stay, what must go.

These requests name datasets by their folders in the cache, so that nothing has to be opened: also what nobody reads can
be looked at, pinned and evicted. What can be read from files is not told but handed out: tables, residency table and
state table, as descriptors.
"""

from __future__ import annotations

import json
import logging
import os
from typing import TYPE_CHECKING, Any

import trio

from streaming.engine import messages
from streaming.engine.residency import BLOCK
from streaming.errors import CacheLimitError, ProtocolError, SourceMissingError, StreamingError
from streaming.sizes import format_size

from ..cache.pinning import note_pins, room_for_pins
from . import fields

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from ..cache.cache import Cache
    from ..cache.dataset import Dataset
    from ..engine import Engine

    Answer = tuple[dict[str, Any], list[int]]

__all__ = ["ACTS", "MOST_FILES"]

log = logging.getLogger(__name__)

# Files of one `evict`: each may cost a trip to a thread, and the client waits for all of them.
MOST_FILES = 1000
# What is on its way for nobody is waited for so long before it is "being fetched".
LANDING_SECONDS = 5.0
# Broken files that are told with their reasons.
MOST_FAILED = 200
LONGEST_REASON = 200


async def list_folders(engine: Engine, request: dict[str, Any]) -> Answer:
    """`files` without a folder: every dataset folder of the cache, in a memfd."""
    del request
    shown = [_folder(engine, dataset) for dataset in engine.cache.datasets.values()]
    fd = os.memfd_create("mdsfs-folders", os.MFD_CLOEXEC)
    os.write(fd, json.dumps(shown).encode())
    return {}, [fd]


def _folder(engine: Engine, dataset: Dataset) -> dict[str, Any]:
    info, pins = dataset.folder.info, engine.cache.pins
    return {
        "folder": info.id,
        "kind": info.kind,
        "url": dataset.url,
        "source": info.url,
        "prefix": info.prefix,
        "identity": engine.sources.identity_of(dataset),
        "users": dataset.users,
        "pinned_files": len(pins.of(dataset.number)),
        "pinned_bytes": pins.blocks_of(dataset.number) * BLOCK,
    }


async def files(engine: Engine, request: dict[str, Any]) -> Answer:
    """`files`: the folders; with a folder its tables; with a file that cache file."""
    if request.get("folder") is None:
        return await list_folders(engine, request)
    dataset = _dataset(engine, request)
    if request.get("file") is not None:
        file = fields.number(request, "file", most=len(dataset.tables.files) - 1)
        return {}, [dataset.folder.read_fd(file)]
    folder = dataset.folder
    fds: list[int] = []
    try:
        paths = (folder.tables_path, folder.residency_path, folder.state.path)
        fds.extend(os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in paths)
    except OSError as error:
        messages.close_fds(fds)
        raise StreamingError(f"the cache folder of {dataset.url} is damaged: {error}") from error
    failed = [(file, str(work.error)[:LONGEST_REASON]) for file, work in dataset.work.items() if work.error is not None]
    return {"failed": failed[:MOST_FAILED]}, fds


async def pin(engine: Engine, request: dict[str, Any]) -> Answer:
    """`pin`: these files stay, if all that is pinned fits into the limit."""
    dataset, chosen = _dataset(engine, request), _files(engine, request)
    cache = engine.cache
    _check_room(cache, dataset, chosen)
    cache.pin(dataset, chosen)
    await note_pins(dataset, chosen, kept=True)
    log.info("pinned dataset=%d files=%d blocks=%d", dataset.number, len(chosen), cache.pins.blocks)
    return {"pinned_bytes": cache.pins.blocks * BLOCK}, []


def _check_room(cache: Cache, dataset: Dataset, chosen: list[int]) -> None:
    more, room = cache.pins.cost(dataset, chosen), room_for_pins(cache, dataset)
    if cache.pins.blocks + more > room:
        others = f" beside {format_size(cache.pins.blocks * BLOCK)} that are pinned" if cache.pins.blocks else ""
        raise CacheLimitError(
            f"pinning these {len(chosen)} files takes {format_size(more * BLOCK)}{others}, the limit leaves "
            f"{format_size(max(room, 0) * BLOCK)} for pins: pin fewer, unpin others, or give a larger --cache-limit"
        )


async def unpin(engine: Engine, request: dict[str, Any]) -> Answer:
    """`unpin`: these files may go again."""
    dataset, chosen = _dataset(engine, request), _files(engine, request)
    mine = [file for file in chosen if engine.cache.pins.has(dataset.number, file)]
    engine.cache.unpin(dataset, mine)
    await note_pins(dataset, mine, kept=False)
    return {"unpinned": len(mine), "pinned_bytes": engine.cache.pins.blocks * BLOCK}, []


async def evict(engine: Engine, request: dict[str, Any]) -> Answer:
    """`evict`: these files go now, but for those that can't; with `forget` the folder as well, once nobody uses it."""
    dataset, chosen = _dataset(engine, request), _files(engine, request)
    if len(chosen) > MOST_FILES:
        raise ProtocolError(f"files: expected at most {MOST_FILES} at once, got {len(chosen)}")
    cache = engine.cache
    evicted, kept = 0, []
    for file in chosen:
        await _wait_unless_wanted(engine, dataset, file)
        before = cache.ledger.resident_of(dataset.number, file)
        reason = await cache.evict_file(dataset, file)
        evicted += before if reason is None else 0
        if reason is not None:
            kept.append((file, reason))
    forgotten = fields.flag(request, "forget") and cache.is_idle(dataset)
    if forgotten:
        await cache.remove(dataset)
    return {"evicted_bytes": evicted * BLOCK, "kept": kept, "forgotten": forgotten and not dataset.kept}, []


async def _wait_unless_wanted(engine: Engine, dataset: Dataset, file: int) -> None:
    """Return when nothing of a file is on its way any more, or somebody waits for what is, or it takes long."""
    with trio.move_on_after(LANDING_SECONDS):
        while (work := dataset.work.get(file)) is not None and work.flights and not work.waiters:
            await engine.fills.wait_landing()


ACTS: Mapping[str, Callable[[Engine, dict[str, Any]], Awaitable[Answer]]] = {
    "files": files,
    "pin": pin,
    "unpin": unpin,
    "evict": evict,
}


def _dataset(engine: Engine, request: dict[str, Any]) -> Dataset:
    name = fields.text(request, "folder")
    for dataset in engine.cache.datasets.values():
        if dataset.folder.id == name:
            return dataset
    raise SourceMissingError(f"the cache has no dataset folder {name[:80]!r} (any more)")


def _files(engine: Engine, request: dict[str, Any]) -> list[int]:
    """The files of [first, count] pairs."""
    most = len(_dataset(engine, request).tables.files)
    runs = fields.pairs(request, "files")
    if any(first + count > most for first, count in runs):
        raise ProtocolError(f"files: expected runs below {most}")
    return list(dict.fromkeys(file for first, count in runs for file in range(first, first + count)))
