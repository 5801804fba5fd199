"""Tables of large indexes of plain folders, kept for this user's other processes.

A folder behind an engine has its tables there. A plain folder's index is parsed by whoever opens it, which takes
seconds from some hundred thousand shards on: so the tables are put into the user's cache directory
(`$XDG_CACHE_HOME/mdsfs/tables`, else `~/.cache/mdsfs/tables`) and mapped from there, by every rank, worker and later
run. They are found by what the index file is (device, inode, size, times). Nothing is ever written into the dataset.
"""

from __future__ import annotations

import mmap
import os
import stat
import tempfile
from contextlib import suppress
from typing import TYPE_CHECKING

from streaming.errors import DatasetError
from streaming.mds.tables import load_tables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from streaming.mds.tables import DatasetTables

__all__ = ["LARGE", "kept_tables"]

# An index from here on (12,000 shards) is worth a file.
LARGE = 4 << 20
# So many are kept, the ones used last.
MOST = 8
_SUFFIX = ".tables"


def kept_tables(index: os.stat_result, build: Callable[[], Iterable[bytes | memoryview]]) -> DatasetTables:
    """The tables of an index file: as kept, or as `build` gives them, which then are kept."""
    if index.st_size < LARGE:
        return load_tables(b"".join(build()))
    numbers = (index.st_dev, index.st_ino, index.st_size, index.st_mtime_ns, index.st_ctime_ns)
    name = "-".join(f"{number:x}" for number in numbers) + _SUFFIX
    folder = _folder()
    if folder is None:
        return load_tables(b"".join(build()))
    path = os.path.join(folder, name)
    with suppress(OSError, DatasetError):
        return _mapped(path)
    pieces = list(build())
    try:
        _keep(path, pieces)
        return _mapped(path)
    except OSError:  # no room, or nowhere to write: the next process parses the index again
        return load_tables(b"".join(pieces))


def _folder() -> str | None:
    """The folder, made if need be; None where there is none that is ours alone."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = os.path.join(cache, "mdsfs", "tables")
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        found = os.stat(folder)
    except OSError:
        return None
    ours = found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return folder if ours and os.path.isabs(folder) else None


def _mapped(path: str) -> DatasetTables:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        tables = load_tables(memoryview(mmap.mmap(fd, 0, prot=mmap.PROT_READ)))
    except ValueError as error:  # an empty file can't be mapped
        raise DatasetError(f"{path}: empty") from error
    finally:
        os.close(fd)
    with suppress(OSError):
        os.utime(path)
    return tables


def _keep(path: str, pieces: Iterable[bytes | memoryview]) -> None:
    folder = os.path.dirname(path)
    _make_room(folder)
    fd, scratch = tempfile.mkstemp(dir=folder)
    try:
        with open(fd, "wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(fd)  # under its name it is taken for whole, after a power cut too
        os.rename(scratch, path)
    except BaseException:
        os.unlink(scratch)
        raise


def _make_room(folder: str) -> None:
    """Remove all but the ones used last, and what killed processes left."""
    with os.scandir(folder) as entries:
        kept = sorted(entries, key=lambda entry: entry.stat().st_mtime, reverse=True)
    for entry in kept[MOST - 1 :]:
        with suppress(OSError):
            os.unlink(entry.path)
