"""One dataset's folder: its tables, its sparse files and what is known about them; opening, punching, publishing.

`dataset.json` (what it is), `tables`, `index.orig` (as stored), `index.json` (as shown), `residency`, `state`,
`files/<n>`. Methods that change a file are safe to call from threads; those that take something away take turns.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import secrets
import shutil
import threading
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from streaming.engine.residency import BLOCK
from streaming.errors import CacheDirectoryError
from streaming.mds.tables import DatasetTables, load_tables

from . import disk
from .layout import Layout, PublishedLayout
from .state import StateTable, table_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

__all__ = ["DatasetFolder", "DatasetInfo", "growth_bytes", "read_info"]

Range = tuple[int, int]

_GENERATIONS_AT = 4096  # RESIDENCY.md
# Names of folders on their way out; the next engine removes what a killed one left.
TRASH = ".trash-"


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """`dataset.json`: which version of which dataset this is. `etag` is the index's; empty for plain objects."""

    id: str
    kind: Literal["mds", "objects"]
    url: str
    prefix: str
    identity: dict[str, Any] = field(default_factory=dict)
    etag: str = ""
    mtime_ns: int = 0
    files: int = 0
    shown_size: int = 0
    stored_size: int = 0

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


def growth_bytes(files: int) -> int:
    """What a dataset of so many files will write with time beside its data and bitmaps, at most.

    State table, generations of the residency table, entries of the directory.
    """
    grows = (table_size(files), _GENERATIONS_AT + 8 * files, 32 * files + 2 * 4096)
    return sum(-(-size // 4096) * 4096 for size in grows)


def read_info(path: Path) -> DatasetInfo | None:
    """What a `dataset.json` says; None where there is none that can be read (a folder that was never finished)."""
    try:
        return DatasetInfo(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


class DatasetFolder:
    """An existing dataset folder, open."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        info = read_info(layout.folder / "dataset.json")
        if info is None:
            raise CacheDirectoryError(f"{layout.folder} is damaged: remove that folder")
        self.info = info
        self.tables = _map_tables(layout.folder / "tables")
        self.state = StateTable(layout.folder / "state", len(self.tables.files))
        self._inodes: dict[int, int] = {}  # of the cache files that this engine has opened
        self._taking = tuple(threading.Lock() for _ in range(16))  # by file, several share one
        self._honest = not self.is_published or disk.leases_are_honest(layout.folder)
        self.touch()

    def __repr__(self) -> str:
        return f"DatasetFolder({self.layout.folder}, {self.info.url}, {len(self.tables.files)} files)"

    @property
    def id(self) -> str:
        """The folder's name in the cache."""
        return self.info.id

    @property
    def path(self) -> Path:
        """The folder itself."""
        return self.layout.folder

    @property
    def tables_path(self) -> Path:
        """The numpy tables."""
        return self.layout.folder / "tables"

    @property
    def residency_path(self) -> Path:
        """The residency table; the engine makes it."""
        return self.layout.folder / "residency"

    @property
    def index_path(self) -> Path:
        """The index as shown (kind `mds` only)."""
        return self.layout.index

    @property
    def original_path(self) -> Path:
        """The index as stored."""
        return self.layout.folder / "index.orig"

    @property
    def is_published(self) -> bool:
        """Whether complete shards get names that other programs know."""
        return isinstance(self.layout, PublishedLayout)

    @property
    def leases_are_honest(self) -> bool:
        """False: published shards are never punched here, since nobody can tell who has them open."""
        return self._honest

    def touch(self) -> None:
        """Now is the last use."""
        with contextlib.suppress(OSError):
            os.utime(self.layout.folder / "dataset.json")

    def close(self) -> None:
        """Close the state table; the tables stay mapped as long as somebody has them."""
        self.touch()
        self.state.close()

    def metadata_bytes(self) -> int:
        """What this dataset costs before a byte of data is there, at most: the ledger's fixed charge.

        Includes what will be written with time: all of the state table, the residency table's generations, and the
        growth of the directory. The bitmaps of the residency table follow what is resident and are not in it.
        """
        paths = (self.tables_path, self.original_path, self.index_path, self.layout.folder / "dataset.json")
        fixed = sum(path.stat().st_blocks * 512 for path in paths if path.exists())
        listed = 2 * BLOCK if self.is_published else 0  # a link to it, and that link's folder
        return fixed + growth_bytes(len(self.tables.files)) + listed

    def disk_bytes(self) -> int:
        """Blocks on disk of the folder, and of the published files if there are any."""
        top = self.layout.publish if isinstance(self.layout, PublishedLayout) else self.layout.folder
        return disk.used_bytes(top)

    # ---- files -------------------------------------------------------------------------------------------------------

    def file_path(self, n: int) -> Path:
        """Where the file is now."""
        return self._final_path(n) or self.layout.partial(n)

    def _final_path(self, n: int) -> Path | None:
        """Where other programs find it; None while they don't."""
        if not self.is_published or not self.state.get(n).published:
            return None
        return self.layout.final(self.tables.name(n))

    def open_file(self, n: int) -> int:
        """A new read-write descriptor of the cache file, made sparse at its full size where it is missing."""
        size = int(self.tables.files["size"][n])
        final = self._final_path(n)
        path = final or self.layout.partial(n)
        # One that somebody removed from its published name is an error, not a file of zeros under that name.
        create = 0 if final else os.O_CREAT
        with disk.writing(path):
            fd = os.open(path, os.O_RDWR | create | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                found = os.fstat(fd)
                self._inodes.setdefault(n, found.st_ino)
                if found.st_size < size:  # never smaller: a mapping past the end is a SIGBUS
                    os.ftruncate(fd, size)
            except BaseException:
                os.close(fd)
                raise
        return fd

    def read_fd(self, n: int) -> int:
        """A new read-only descriptor with an open file description of its own: a pin (flock) belongs to that."""
        path = self.file_path(n)
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        os.close(self.open_file(n))
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)

    def is_replaced(self, n: int) -> bool:
        """Whether somebody else has removed or replaced the cache file since this engine first opened it."""
        known = self._inodes.get(n)
        if known is None:
            return False
        try:
            return os.stat(self.file_path(n), follow_symlinks=False).st_ino != known
        except FileNotFoundError:
            return True

    def doubt(self, n: int) -> None:
        """Forget that the file was found good: it is to be checked again."""
        self._inodes.pop(n, None)
        self.state.doubt(n)

    def check_file(self, n: int) -> Literal["ok", "rehash", "drop"]:
        """Whether what an earlier engine left may be served: as it is, after a HashJob, or not (then `drop_file`).

        Call it before the file's first use; costs one stat, and nothing at all later on.
        """
        self._finish_publishing(n)
        try:
            found = os.stat(self.file_path(n), follow_symlinks=False)
        except FileNotFoundError:
            found = None
        return self.state.check(n, found, self.tables.hashes(n))

    def expected_hashes(self, n: int) -> dict[str, str]:
        """Hashes of the raw file: the index's, else our own of the first fill, else none."""
        hashes = self.tables.hashes(n)
        own = self.state.get(n).own_hash
        if not hashes and own:
            name, _, digest = own.partition(":")
            return {name: digest}
        return hashes

    # ---- fills -------------------------------------------------------------------------------------------------------

    def begin_fill(self, n: int) -> None:
        """Before anything is written into the file."""
        self.state.begin(n)

    def end_fill(self, n: int, fd: int, **changes: Any) -> None:
        """After the last write of a fill, well or not; `changes` as in `StateTable.settle`."""
        self.state.settle(n, os.fstat(fd), **changes)

    def note(self, n: int, **changes: Any) -> None:
        """Record what was learnt about a file outside a fill (level, own hash, etag …), with its present stat."""
        try:
            found = os.stat(self.file_path(n), follow_symlinks=False)
        except FileNotFoundError:
            found = None
        self.state.note(n, found, **changes)

    # ---- taking away -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def unpinned(self, n: int) -> Iterator[int | None]:
        """A descriptor of the existing file when nobody has a pin on it, else None.

        Nobody gets a pin while the block runs. A published file counts as pinned while anybody else has it open.
        """
        # One thread at a time: another one's lock, or descriptor, would look like a reader's.
        with self._taking[n % len(self._taking)]:
            fd = os.open(self.file_path(n), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                with disk.lock_exclusively(fd) as free:
                    yield fd if free and self._may_change(n, fd) else None
            finally:
                os.close(fd)

    def _may_change(self, n: int, fd: int) -> bool:
        return self._final_path(n) is None or (self._honest and disk.nobody_else_has_it_open(fd))

    def punch(self, n: int, offset: int, length: int) -> bool:
        """Give back the blocks of a range (whole blocks, or to the end); False, and nothing done, when it is pinned."""
        return self.punch_runs(n, [(offset, length)])

    def punch_runs(self, n: int, runs: Iterable[Range]) -> bool:
        """`punch` for several (offset, length) of one file, all or nothing."""
        try:
            with self.unpinned(n) as fd:
                if fd is None:
                    return False
                self._withdraw(n, fd)
                for offset, length in runs:
                    disk.punch_hole(fd, offset, -(-length // BLOCK) * BLOCK)
                self.state.note(n, os.fstat(fd))
        except FileNotFoundError:
            self.state.clear(n)
        except OSError as error:
            raise disk.write_error(error, self.file_path(n)) from error
        return True

    def _withdraw(self, n: int, fd: int) -> None:
        # In this order every instant is safe for kill -9: first it is no longer complete, then no longer at its name,
        # then its bytes go. In between the recorded stat is wrong, so the next engine drops the rest.
        state = self.state.get(n)
        if state.complete:
            self.state.note(n, None, complete=False)
        if state.published:
            final = self.layout.final(self.tables.name(n))
            assert final is not None
            os.rename(final, self._prepare_partial(n))
            self.state.note(n, None, published=False)

    def scrub(self, n: int, offset: int, length: int) -> None:
        """Give back the blocks of a range that nobody was ever shown, whoever has a pin on other parts of the file."""
        try:
            fd = os.open(self.file_path(n), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return
        try:
            with disk.writing(self.file_path(n)):
                disk.punch_hole(fd, offset, -(-length // BLOCK) * BLOCK)
            self.state.note(n, os.fstat(fd))
        finally:
            os.close(fd)

    def drop_file(self, n: int) -> bool:
        """Give back all of a file and forget what is known about it, but for the version of its object.

        One whose size was changed from outside is replaced by a new one. False, and nothing done, when it is pinned.
        """
        path, size = self.file_path(n), int(self.tables.files["size"][n])
        try:
            with self.unpinned(n) as fd:
                if fd is None:
                    return False
                found = os.fstat(fd)
                if not self._is_ours(n, found):
                    # Somebody changed what stands at the published name: it is theirs, until ours replaces it.
                    self.state.clear(n)
                    return True
                self._withdraw(n, fd)
                disk.punch_hole(fd, 0, max(found.st_size, size, 1) + BLOCK)
                if found.st_size != size:
                    os.unlink(self.layout.partial(n))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise disk.write_error(error, path) from error
        self.state.clear(n)
        return True

    def _is_ours(self, n: int, found: os.stat_result) -> bool:
        return not self.state.get(n).published or self.state.is_same_file(n, found)

    def remove(self) -> bool:
        """Remove the folder from the disk, and close this; False, and nothing done, when a reader has a pin in it.

        Data is punched before it is unlinked, so that a reader of an earlier engine, which may still map it, does not
        go on filling the disk; it sees odd generations from before that on.
        """
        if not self.wipe():
            return False
        self.state.close()
        trash = self.path.with_name(f"{TRASH}{self.path.name.lstrip('.')}-{secrets.token_hex(4)}")
        with disk.writing(self.path):
            os.rename(self.path, trash)
            shutil.rmtree(trash)
        return True

    def wipe(self) -> bool:
        """Drop every file; False, and nothing done, when one is pinned. For a folder that nobody uses any more."""
        numbers = sorted(int(entry.name) for entry in os.scandir(self.layout.folder / "files"))
        for n in numbers:
            with self.unpinned(n) as fd:
                if fd is None:
                    return False
        with contextlib.suppress(FileNotFoundError):
            self._make_generations_odd(numbers)
        dropped = [self.drop_file(n) for n in numbers]
        return all(dropped)

    def _make_generations_odd(self, numbers: list[int]) -> None:
        # A reader of a killed engine may still map this table and copy by it.
        fd = os.open(self.residency_path, os.O_RDWR | os.O_CLOEXEC)
        try:
            for n in numbers:
                at = _GENERATIONS_AT + 8 * n
                generation = int.from_bytes(os.pread(fd, 8, at), "little") | 1
                os.pwrite(fd, generation.to_bytes(8, "little"), at)
        finally:
            os.close(fd)

    # ---- publishing --------------------------------------------------------------------------------------------------

    def publish(self, n: int) -> None:
        """Give a complete file its final name, in place of whatever stands there.

        One of shard level, or one for which the index has no hash: it can't be verified any better. Survives kill -9
        between any two steps: the record says so first, and `check_file` finishes the rename.
        """
        final = self.layout.final(self.tables.name(n))
        state = self.state.get(n)
        if final is None or state.published or not state.complete or self.is_unverified(n):
            return
        with disk.writing(final):
            final.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.state.note(n, None, published=True)
            os.rename(self.layout.partial(n), final)
            self.state.note(n, os.stat(final, follow_symlinks=False))

    def is_unverified(self, n: int) -> bool:
        """Whether the index has a hash for a file, which was not compared yet."""
        return self.state.get(n).level != "shard" and bool(self.tables.hashes(n))

    def _finish_publishing(self, n: int) -> None:
        final = self.layout.final(self.tables.name(n))
        if final is None or not self.state.get(n).published:
            return
        with contextlib.suppress(FileNotFoundError):
            if self.state.is_same_file(n, os.stat(self.layout.partial(n))):
                os.rename(self.layout.partial(n), final)

    def _prepare_partial(self, n: int) -> Path:
        partial = self.layout.partial(n)
        partial.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return partial


def _map_tables(path: Path) -> DatasetTables:
    try:
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        return load_tables(memoryview(mapped))
    except (OSError, ValueError) as error:
        raise CacheDirectoryError(f"{path} is damaged: remove that folder") from error
