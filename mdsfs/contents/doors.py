"""The two ways to what a cache directory holds: through its engine where one runs, else from the disk.

Without an engine the directory is owned for as long as the door is open, so that none can start meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, Self

from mdsfs.engine.serving.keeping import MOST_FILES
from mdsfs.engine.store.directory import CacheStore
from streaming.engine.client import EngineClient
from streaming.engine.residency import ResidencyWriter
from streaming.errors import CacheDirectoryError, EngineUnavailableError

from .folder import Contents, Folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

    from mdsfs.engine.store.folder import DatasetFolder

__all__ = ["Door", "EngineDoor", "Evicted", "open_door", "runs_of"]

# An eviction waits for the disk, file by file.
EVICT_TIMEOUT = 300.0


@dataclass(slots=True)
class Evicted:
    """What an eviction did: bytes that went, and files that stayed with the reason."""

    bytes: int = 0
    kept: list[tuple[int, str]] = field(default_factory=list)


class Door(Protocol):
    """What commands do with a cache."""

    def folders(self) -> list[Folder]:
        """Its dataset folders."""

    def contents(self, folder: Folder) -> Contents:
        """The files of one of them; the caller closes it."""

    def open_file(self, folder: Folder, number: int) -> int:
        """A cache file, read-only."""

    def evict(self, folder: Folder, numbers: Sequence[int], *, forget: bool = False) -> Evicted:
        """Take files away, with `forget` the folder too where nothing needs it."""


@contextlib.contextmanager
def open_door(cache_dir: Path) -> Iterator[Door]:
    """The door to a cache directory. Raises CacheDirectoryError where it is none."""
    if not (cache_dir / "VERSION").exists():
        raise CacheDirectoryError(f"{cache_dir} is not a cache of mdsfs: choose another --cache-dir")
    try:
        client = EngineClient.connect(cache_dir, client="cli")
    except EngineUnavailableError:
        with DiskDoor(CacheStore.open(cache_dir)) as door:
            yield door
        return
    with client:
        yield EngineDoor(client)


class EngineDoor:
    """A running engine's cache."""

    def __init__(self, client: EngineClient) -> None:
        self.client = client

    @property
    def limit(self) -> int:
        """Bytes that the cache may hold."""
        return int(self.client.engine["options"]["cache_limit"])

    def folders(self) -> list[Folder]:
        """See `Door`."""
        _, (fd,) = self.client.ask("files", fds=(1, 1))
        try:
            told = json.loads(os.pread(fd, os.fstat(fd).st_size, 0))
        finally:
            os.close(fd)
        names = ("kind", "url", "source", "identity", "users", "pinned_files", "pinned_bytes")
        return [Folder(each["folder"], **{name: each[name] for name in names}) for each in told]

    def contents(self, folder: Folder) -> Contents:
        """See `Door`."""
        told, fds = self.client.ask("files", folder=folder.name, fds=(3, 3))
        return Contents(fds, [file for file, _ in told["failed"]])

    def open_file(self, folder: Folder, number: int) -> int:
        """See `Door`."""
        return self.client.ask("files", folder=folder.name, file=number, fds=(1, 1))[1][0]

    def evict(self, folder: Folder, numbers: Sequence[int], *, forget: bool = False) -> Evicted:
        """See `Door`."""
        done = Evicted()
        for at in range(0, max(len(numbers), 1), MOST_FILES):
            batch = numbers[at : at + MOST_FILES]
            last = at + MOST_FILES >= len(numbers)
            told = self._keep("evict", folder, batch, forget=forget and last, timeout=EVICT_TIMEOUT)
            done.bytes += told["evicted_bytes"]
            done.kept += [(file, reason) for file, reason in told["kept"]]
        return done

    def pin(self, folder: Folder, numbers: Sequence[int]) -> int:
        """Files stay from now on; bytes that all pins take. Raises CacheLimitError where they would not fit."""
        return int(self._keep("pin", folder, numbers)["pinned_bytes"])

    def unpin(self, folder: Folder, numbers: Sequence[int]) -> int:
        """Files may go again; how many of them were pinned."""
        return int(self._keep("unpin", folder, numbers)["unpinned"])

    def _keep(self, op: str, folder: Folder, numbers: Sequence[int], **more: Any) -> dict[str, Any]:
        return self.client.ask(op, folder=folder.name, files=runs_of(numbers), **more)[0]


class DiskDoor:
    """A cache directory without an engine."""

    def __init__(self, store: CacheStore) -> None:
        self._store = store

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._store.close()

    def folders(self) -> list[Folder]:
        """See `Door`."""
        found = []
        for name in self._store.dataset_ids():
            folder = self._store.folder(name)
            info, kept = folder.info, folder.state.kept_files()
            url = f"{info.url.rstrip('/')}/{info.prefix}" if info.prefix else info.url
            size = sum(int(folder.tables.files["size"][file]) for file in kept)
            found.append(Folder(name, info.kind, url, info.url, info.identity, None, len(kept), size))
        return found

    def contents(self, folder: Folder) -> Contents:
        """See `Door`."""
        found = self._store.folder(folder.name)
        paths = (found.tables_path, found.residency_path, found.state.path)
        return Contents([os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in paths])

    def open_file(self, folder: Folder, number: int) -> int:
        """See `Door`."""
        return self._store.folder(folder.name).read_fd(number)

    def evict(self, folder: Folder, numbers: Sequence[int], *, forget: bool = False) -> Evicted:
        """See `Door`."""
        found = self._store.folder(folder.name)
        done = Evicted()
        residency = ResidencyWriter.open(found.residency_path, found.tables.files["size"])
        try:
            before = residency.resident_blocks()
            for number in numbers:
                if found.state.get(number).kept:
                    done.kept.append((number, "pinned"))
                elif not before[number]:
                    continue
                elif _drop(found, residency, number):
                    done.bytes += int(before[number]) * 4096
                else:
                    done.kept.append((number, "in use by a reader"))
            empty = not residency.resident_blocks().any()
        finally:
            residency.close()
        if forget and empty and not found.state.kept_files():
            self._store.release(folder.name)
            self._store.delete(folder.name)
        return done


def _drop(folder: DatasetFolder, residency: ResidencyWriter, number: int) -> bool:
    """Take a file away; False when a reader of an earlier engine has a view of it."""
    # In this order every instant is safe for kill -9: the next engine drops a file of which nothing is recorded, and
    # until then nobody trusts an odd generation.
    residency.begin(number)
    try:
        gone = folder.drop_file(number)
        if gone:
            residency.clear_file(number)
    finally:
        residency.end(number)
    return gone


def runs_of(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Numbers as runs (first, how many)."""
    runs: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if runs and number == sum(runs[-1]):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((number, 1))
    return runs
