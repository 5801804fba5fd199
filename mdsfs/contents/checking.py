"""Checks a cache: every file that is complete there is read and compared with its hashes.

What is partial can't be compared: it has the level at which its blocks came. A file that is taken away while it is read
is no finding.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mdsfs.source.checking import Bad
from mdsfs.source.stored import PIECE, Digests, usable_hashes
from streaming.errors import ShardCorruptError
from streaming.mds.shards import FileInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .doors import Door
    from .folder import Contents, Folder

__all__ = ["CheckedCache", "check_cache"]


@dataclass(frozen=True, slots=True)
class CheckedCache:
    """What was looked at, in files. `unhashed` ones are complete, but there is nothing to compare them with."""

    checked: int
    bytes: int
    unhashed: int
    partial: int
    gone: int
    """Taken away while they were read."""
    bad: tuple[Bad, ...]


@dataclass(frozen=True, slots=True)
class _Task:
    folder: Folder
    contents: Contents
    number: int
    size: int


def check_cache(
    door: Door,
    chosen: Sequence[tuple[Folder, Contents, Sequence[int]]],
    *,
    jobs: int,
    begin: Callable[[int], None] = lambda _total: None,
    progress: Callable[[int], None] = lambda _count: None,
) -> CheckedCache:
    """Check the chosen files, `jobs` at a time."""
    tasks, unhashed, partial = [], 0, 0
    for folder, contents, numbers in chosen:
        for number in numbers:
            row = contents.row(number)
            if row.state == "complete" and not contents.hashes(number):
                unhashed += 1
            elif row.state == "complete":
                tasks.append(_Task(folder, contents, number, row.size))
            elif row.resident_bytes:
                partial += 1
    begin(sum(task.size for task in tasks))
    stopping = threading.Event()
    with ThreadPoolExecutor(jobs, thread_name_prefix="verify") as pool:
        try:
            found = list(pool.map(lambda task: _check(door, task, progress, stopping), tasks))
        except BaseException:
            stopping.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return CheckedCache(
        checked=len(tasks) - found.count(None),
        bytes=sum(task.size for task, each in zip(tasks, found, strict=True) if each is not None),
        unhashed=unhashed,
        partial=partial,
        gone=found.count(None),
        bad=tuple(Bad(_name(task), each) for task, each in zip(tasks, found, strict=True) if each),
    )


def _check(door: Door, task: _Task, progress: Callable[[int], None], stopping: threading.Event) -> str | None:
    """What is wrong with a file, '' for nothing; None where it was taken away meanwhile."""
    contents, number = task.contents, task.number
    generation = contents.generation(number)
    expected = contents.hashes(number)
    digests = Digests(usable_hashes(expected))
    fd = door.open_file(task.folder, number)
    try:
        while not stopping.is_set() and (piece := os.pread(fd, PIECE, digests.size)):
            digests.update(piece)
            progress(len(piece))
    finally:
        os.close(fd)
    if contents.generation(number) != generation or generation & 1 or not contents.is_complete(number):
        return None
    try:
        digests.check("", FileInfo("", task.size, expected))
    except ShardCorruptError as error:
        return str(error).removeprefix(": ")
    return ""


def _name(task: _Task) -> str:
    return f"{task.folder.url.rstrip('/')}/{task.contents.tables.name(task.number)}"
