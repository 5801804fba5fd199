"""What a source consists of, as folders of the cache: runs the indexer child and takes in what it made.

The engine never reads an index itself: a large one would take its memory and its only thread.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trio

from streaming.errors import EngineError, ReadTimeoutError, from_wire

from ..child import environment
from ..store.directory import dataset_id
from ..store.folder import DatasetInfo

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from streaming.remote import RemoteOptions

    from ..store.directory import CacheStore

__all__ = ["IndexedSource", "index_source"]

log = logging.getLogger(__name__)

# A listing of millions of objects takes minutes; the client that asked waits for 300 s.
TIMEOUT = 290.0
# A line of the child: some hundred bytes for each nested dataset.
MAX_LINE = 64 << 20
# Indexers that may end without a word, killed by somebody or for their memory, before that is an error.
TRIES = 3


class _SilentError(EngineError):
    """The indexer has ended, perhaps killed for its memory, and has not said why."""


@dataclass(frozen=True, slots=True)
class IndexedSource:
    """The datasets of a source, each with a folder in the cache: `store.folder(info.id)` opens it.

    The root's own dataset is first, plain objects are last.
    """

    datasets: tuple[DatasetInfo, ...]
    warnings: tuple[str, ...]


async def index_source(
    store: CacheStore,
    url: str,
    options: RemoteOptions,
    identity: dict[str, Any],
    *,
    listing: bool,
    publish: Path | None = None,
    make_room: Callable[[int], Awaitable[object]] | None = None,
) -> IndexedSource:
    """Find the datasets at a URL (with `listing`, also nested ones and plain objects) and their folders.

    Folders of the same content are used again. Before new ones are written, `make_room` is awaited with the bytes that
    they take; what it raises ends this. Raises IndexFormatError, SourceMissingError and whatever the store says.
    With `publish` the root's dataset lies there, and nested ones in folders below it.
    """
    for _ in range(TRIES - 1):
        try:
            return await _index_once(store, url, options, identity, listing, publish, make_room)
        except _SilentError as error:
            log.warning("%s: %s; another one tries again", url, error)
    return await _index_once(store, url, options, identity, listing, publish, make_room)


async def _index_once(
    store: CacheStore,
    url: str,
    options: RemoteOptions,
    identity: dict[str, Any],
    listing: bool,
    publish: Path | None,
    make_room: Callable[[int], Awaitable[object]] | None,
) -> IndexedSource:
    staging = store.staging()
    try:
        known = store.known(url, identity)
        request = {
            "url": url,
            "options": dataclasses.asdict(options),
            "listing": listing,
            "staging": str(staging),
            "known": [_known(store, info, publish) for info in known.values() if info.kind == "mds"],
        }
        answer = await _ask(request, make_room)
        infos = [_adopt(store, staging, each, url, identity, publish, known) for each in answer["datasets"]]
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(lambda: shutil.rmtree(staging, ignore_errors=True))
    return IndexedSource(tuple(infos), tuple(answer["warnings"]))


def _known(store: CacheStore, info: DatasetInfo, publish: Path | None) -> dict[str, str]:
    folder = store.layout(info.id, publish=_below(publish, info.prefix)).folder
    return {"prefix": info.prefix, "etag": info.etag, "id": info.id, "tables": str(folder / "tables")}


def _below(publish: Path | None, prefix: str) -> Path | None:
    return publish / prefix if publish else None


def _adopt(
    store: CacheStore,
    staging: Path,
    found: dict[str, Any],
    url: str,
    identity: dict[str, Any],
    publish: Path | None,
    known: dict[str, DatasetInfo],
) -> DatasetInfo:
    if found["reused"] is not None:
        return known[found["reused"]]
    own_url = f"{url.rstrip('/')}/{found['prefix']}" if found["prefix"] else url
    name = dataset_id(found["kind"], own_url, identity.get("endpoint"), found["etag"])
    fields = {key: found[key] for key in ("kind", "prefix", "etag", "mtime_ns", "files", "shown_size", "stored_size")}
    info = DatasetInfo(id=name, url=url, identity=identity, **fields)
    # a folder that is there may be of an index that was stored anew
    return dataclasses.replace(
        info, id=store.adopt(staging / found["folder"], info, publish=_below(publish, info.prefix))
    )


# ---- the child -------------------------------------------------------------------------------------------------------


async def _ask(request: dict[str, Any], make_room: Callable[[int], Awaitable[object]] | None) -> dict[str, Any]:
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "mdsfs.engine.sources.indexer"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with trio.fail_after(TIMEOUT):
            return await _talk(process.stdin, process.stdout, request, make_room)
    except trio.TooSlowError:
        raise ReadTimeoutError(f"{request['url']}: listing and indexing took longer than {TIMEOUT:.0f} s") from None
    except trio.BrokenResourceError:
        raise _SilentError("the indexer ended without a word: see the engine's log") from None
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.stdin.aclose()
            await process.stdout.aclose()
            await process.wait()


async def _talk(
    stdin: trio.abc.SendStream,
    stdout: trio.abc.ReceiveStream,
    request: dict[str, Any],
    make_room: Callable[[int], Awaitable[object]] | None,
) -> dict[str, Any]:
    await stdin.send_all(json.dumps(request).encode() + b"\n")
    lines = _Lines(stdout)
    while line := await lines.next():
        said: dict[str, Any] = json.loads(line)
        if "error" in said:
            raise from_wire(said["error"])
        if "datasets" in said:
            return said
        if make_room is not None:
            await make_room(int(said["bytes"]))
        await stdin.send_all(b"go\n")
    raise _SilentError("the indexer ended without a word: see the engine's log")


class _Lines:
    """A stream of bytes as lines."""

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        self._stream = stream
        self._pending = b""

    async def next(self) -> bytes:
        """The next line; nothing at the end."""
        while b"\n" not in self._pending:
            piece = await self._stream.receive_some()
            if not piece:
                return b""
            self._pending += piece
            if len(self._pending) > MAX_LINE:
                raise EngineError("the indexer says too much")
        line, _, self._pending = self._pending.partition(b"\n")
        return line
