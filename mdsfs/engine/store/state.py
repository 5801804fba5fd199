"""The `state` file of a dataset: what is known about each cache file, so that a later engine can trust it or not.

One fixed record per file in a sparse file. A record says how far the file was verified, which version of the object it
is, and what `stat` said when we last wrote it. While a fill writes, the record is dirty; after kill -9 a dirty file is
dropped. With the same boot id the page cache has every write that was made, so an unchanged `stat` is proof enough;
after a reboot nothing is, short of the hash.

Records are changed by `pwrite`, never through a mapping: on a full disk that is an ENOSPC instead of a SIGBUS.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from streaming.errors import CacheDirectoryError

from .disk import data_runs, writing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["LEVELS", "FileState", "StateTable", "boot_id", "file_state", "kept_in", "map_records", "table_size"]

Verdict = Literal["ok", "rehash", "drop"]
Level = Literal["none", "transport", "frame", "shard"]
LEVELS: tuple[Level, ...] = ("none", "transport", "frame", "shard")

# 256 bytes: 16 records to a block. ETags of the known stores are at most 66 bytes; one that does not fit is not
# recorded, and then a partial file cannot be continued after a restart.
RECORD = np.dtype(
    [
        ("flags", "u1"),
        ("level", "u1"),
        ("pad", "u1", 6),
        ("inode", "<u8"),
        ("size", "<i8"),
        ("mtime_ns", "<i8"),
        ("ctime_ns", "<i8"),
        ("boot", "S16"),
        ("own_hash", "S56"),
        ("etag", "S144"),
    ]
)
_DIRTY, _COMPLETE, _UNPINNED, _PUBLISHED, _KEPT, _USED = 1, 2, 4, 8, 16, 128
_PAGE = 4096
_MAGIC = b"MDSSTATE1"


@dataclass(frozen=True, slots=True)
class FileState:
    """One record. `complete`: every byte was there. `own_hash`: `name:hexdigest` of the raw bytes, if we made one.

    `kept`: somebody has pinned the file, whatever is there of it.
    """

    dirty: bool = False
    complete: bool = False
    published: bool = False
    kept: bool = False
    level: Level = "none"
    etag: str | None = None
    own_hash: str | None = None


class StateTable:
    """The records of one dataset; the engine alone writes them."""

    def __init__(self, path: Path, files: int) -> None:
        """Open the table, or create it empty; one of another dataset size is started over."""
        self.path = path
        self.files = files
        self._boot = boot_id()
        # Eviction punches, and notes what it did, in threads beside the engine's own.
        self._lock = threading.Lock()
        self._open_fills: dict[int, int] = {}
        # Files whose record this engine wrote or checked: what it says of them needs no second look.
        self._known: set[int] = set()
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with writing(path):
            self._prepare()

    def __repr__(self) -> str:
        return f"StateTable({self.path}, files={self.files}, filling={sorted(self._open_fills)})"

    def _prepare(self) -> None:
        size = table_size(self.files)
        head = os.pread(self._fd, len(_MAGIC), 0)
        if head == _MAGIC and os.fstat(self._fd).st_size == size:
            return
        os.ftruncate(self._fd, 0)
        os.ftruncate(self._fd, size)
        os.pwrite(self._fd, _MAGIC, 0)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    # ---- reading -----------------------------------------------------------------------------------------------------

    def get(self, n: int) -> FileState:
        """What the record says; all defaults for a file that was never filled."""
        return file_state(self._read(n))

    def check(self, n: int, found: os.stat_result | None, hashes: Mapping[str, str]) -> Verdict:
        """Whether this file's bytes may be served: as they are, after hashing all of it, or not at all.

        `found` is the file's stat (None: it is gone), `hashes` what the index says about its raw bytes.
        """
        if n in self._known:
            return "ok"
        record = self._read(n)
        flags = int(record["flags"])
        if found is None or not flags & _USED or flags & _DIRTY or int(record["size"]) != found.st_size:
            return "drop"
        complete = bool(flags & _COMPLETE)
        same = (int(record["inode"]), int(record["mtime_ns"]), int(record["ctime_ns"]), record["boot"].item()) == (
            found.st_ino,
            found.st_mtime_ns,
            found.st_ctime_ns,
            self._boot,
        )
        if same and (complete or not flags & _UNPINNED):
            self._known.add(n)
            return "ok"
        return "rehash" if complete and (hashes or record["own_hash"].item()) else "drop"

    def doubt(self, n: int) -> None:
        """Look at the file again before it is used next."""
        self._known.discard(n)

    def dirty_files(self) -> list[int]:
        """Files that a killed engine was writing into."""
        return self._flagged(_DIRTY)

    def kept_files(self) -> list[int]:
        """Files that are pinned."""
        return self._flagged(_KEPT)

    def _flagged(self, flag: int) -> list[int]:
        """Files with this flag; reads what was ever written of the table, not all of it."""
        found: list[int] = []
        at, end = _PAGE, _PAGE + self.files * RECORD.itemsize
        for begin, stop in data_runs(self._fd, at, end):
            first = (begin - _PAGE) // RECORD.itemsize
            count = -(-(stop - _PAGE) // RECORD.itemsize) - first
            records = np.frombuffer(
                os.pread(self._fd, count * RECORD.itemsize, _PAGE + first * RECORD.itemsize), RECORD
            )
            found.extend((first + np.flatnonzero(records["flags"] & flag)).tolist())
        return found

    def is_same_file(self, n: int, found: os.stat_result) -> bool:
        """Whether this is the file that we wrote last, unchanged but for its name. (Inode numbers are used again.)"""
        record = self._read(n)
        recorded = int(record["inode"]), int(record["size"]), int(record["mtime_ns"])
        return recorded == (found.st_ino, found.st_size, found.st_mtime_ns)

    # ---- writing -----------------------------------------------------------------------------------------------------

    def begin(self, n: int) -> None:
        """A fill is about to write into the file. From now on kill -9 costs what is in this file."""
        with self._lock:
            fills = self._open_fills.get(n, 0)
            if fills == 0:
                record = self._read(n)
                record["flags"] = int(record["flags"]) | _DIRTY | _USED
                self._write(n, record)
            self._open_fills[n] = fills + 1
            self._known.add(n)

    def settle(self, n: int, found: os.stat_result | None, **changes: Any) -> None:
        """A fill ended, well or not; with the last one the record is clean and takes the file's stat.

        `changes` as in `note`. `found` None leaves the record dirty (the file is about to be dropped).
        """
        with self._lock:
            fills = self._open_fills.get(n, 1) - 1
            if fills > 0:
                self._open_fills[n] = fills
            else:
                self._open_fills.pop(n, None)
        self.note(n, found, **changes)

    def note(
        self,
        n: int,
        found: os.stat_result | None,
        *,
        complete: bool | None = None,
        level: Level | None = None,
        etag: str | None = None,
        own_hash: str | None = None,
        published: bool | None = None,
    ) -> None:
        """Change the record; what is None stays. `found` is recorded, unless a fill is writing into the file."""
        with self._lock:
            record = self._read(n)
            flags = _with(int(record["flags"]), _COMPLETE, complete)
            flags = _with(flags, _PUBLISHED, published) | _USED
            if level is not None:
                record["level"] = LEVELS.index(level)
            if etag is not None:
                encoded = etag.encode()
                fits = len(encoded) <= RECORD["etag"].itemsize
                record["etag"] = encoded if fits else b""
                flags = _with(flags, _UNPINNED, not fits)
            if own_hash is not None:
                record["own_hash"] = own_hash.encode()
            if found is not None and n not in self._open_fills:
                flags &= ~_DIRTY
                record["inode"], record["size"] = found.st_ino, found.st_size
                record["mtime_ns"], record["ctime_ns"] = found.st_mtime_ns, found.st_ctime_ns
                record["boot"] = self._boot
            record["flags"] = flags
            self._write(n, record)
            self._known.add(n)

    def clear(self, n: int) -> None:
        """Nothing of the file is left: forget all but the version of its object, and that it is to be kept."""
        with self._lock:
            record, old = np.zeros((), RECORD), self._read(n)
            record["etag"], record["flags"] = old["etag"], int(old["flags"]) & (_UNPINNED | _KEPT)
            if n in self._open_fills:
                record["flags"] = int(record["flags"]) | _DIRTY | _USED
            self._write(n, record)
            self._known.add(n)

    def keep(self, n: int, *, kept: bool) -> None:
        """Note that somebody has pinned the file, or unpinned it."""
        with self._lock:
            record = self._read(n)
            record["flags"] = _with(int(record["flags"]), _KEPT, kept)
            self._write(n, record)

    # ---- records -----------------------------------------------------------------------------------------------------

    def _read(self, n: int) -> NDArray[Any]:
        if not 0 <= n < self.files:
            raise IndexError(f"file {n} of {self.files}")
        data = os.pread(self._fd, RECORD.itemsize, _PAGE + n * RECORD.itemsize)
        return np.frombuffer(bytearray(data), RECORD).reshape(())

    def _write(self, n: int, record: NDArray[Any]) -> None:
        with writing(self.path):
            os.pwrite(self._fd, record.tobytes(), _PAGE + n * RECORD.itemsize)


def file_state(record: Any) -> FileState:
    """What a record of the table says."""
    flags = int(record["flags"])
    return FileState(
        dirty=bool(flags & _DIRTY),
        complete=bool(flags & _COMPLETE),
        published=bool(flags & _PUBLISHED),
        kept=bool(flags & _KEPT),
        level=LEVELS[min(int(record["level"]), len(LEVELS) - 1)],
        etag=record["etag"].item().decode("utf-8", "replace") or None,
        own_hash=record["own_hash"].item().decode("ascii", "replace") or None,
    )


def map_records(fd: int, files: int) -> NDArray[Any]:
    """All records of a table that somebody else may be changing, mapped: for whoever only looks."""
    if os.fstat(fd).st_size != table_size(files):
        raise CacheDirectoryError(f"a state table does not fit its dataset of {files} files: restart the engine")
    return np.frombuffer(mmap.mmap(fd, 0, prot=mmap.PROT_READ), RECORD, files, _PAGE)


def kept_in(records: NDArray[Any]) -> list[int]:
    """Which of the records are of pinned files."""
    return np.flatnonzero(records["flags"] & _KEPT).tolist()


def _with(flags: int, bit: int, on: bool | None) -> int:
    if on is None:
        return flags
    return flags | bit if on else flags & ~bit


def table_size(files: int) -> int:
    """Apparent size of the table of so many files."""
    return _PAGE + files * RECORD.itemsize


def boot_id() -> bytes:
    """16 bytes that change with every boot of the host (a container shares its host's page cache, hence its boot)."""
    text = Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
    return hashlib.blake2s(text, digest_size=15).digest() + b"\1"  # ends in non-zero: numpy strips zeros
