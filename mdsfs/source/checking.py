"""Checks a source: every shard that its indexes name is read, and compared with what they say about it.

Sizes and hashes of the files, what they hold once decompressed, and the tables that say where the samples are. A bad
shard is a finding, and the others are checked all the same; a store that fails is an error.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from streaming.errors import BucketMissingError, DatasetError, ObjectChangedError, SourceMissingError

from .stored import StoredFile, read_head, read_meta

if TYPE_CHECKING:
    from collections.abc import Callable

    from streaming.mds.shards import ShardInfo
    from streaming.remote import Remote

    from .datasets import Found

__all__ = ["Bad", "Checked", "check_source"]


@dataclass(frozen=True, slots=True)
class Bad:
    """A shard that is not what its index says."""

    shard: str
    problem: str


@dataclass(frozen=True, slots=True)
class Checked:
    """What was looked at, and what was found. `unhashed` shards have no hash: only size and samples were checked."""

    datasets: int
    shards: int
    samples: int
    bytes: int
    unhashed: int
    bad: tuple[Bad, ...]
    warnings: tuple[str, ...]


class _Stopped(Exception):
    """The store has failed for another shard: this one need not go on."""


def check_source(
    remote: Remote,
    found: Found,
    *,
    jobs: int,
    begin: Callable[[int], None] = lambda _total: None,
    progress: Callable[[int], None] = lambda _count: None,
) -> Checked:
    """Check every shard of every dataset, `jobs` at a time; bytes are those of the files as shown."""
    shards = _distinct(found)
    total = sum(raw.bytes for shard in shards for raw, _ in shard.files())
    begin(total)
    checker = _Checker(remote, progress)
    with ThreadPoolExecutor(jobs, thread_name_prefix="verify") as pool:
        try:
            bad = [each for each in pool.map(checker.check, shards) if each is not None]
        except BaseException:
            checker.stopping.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return Checked(
        datasets=len(found.datasets),
        shards=len(shards),
        samples=sum(shard.samples for shard in shards),
        bytes=total,
        unhashed=sum(not shard.hashes for shard in shards),
        bad=tuple(bad),
        warnings=found.warnings,
    )


def _distinct(found: Found) -> list[ShardInfo]:
    """Each shard once, unless two indexes describe it differently: then at least one of them will be wrong."""
    shards: dict[str, list[ShardInfo]] = {}
    for dataset in found.datasets:
        for shard in dataset.shards():
            known = shards.setdefault(shard.raw_data.basename, [])
            if shard not in known:
                known.append(shard)
    return [shard for known in shards.values() for shard in known]


class _Checker:
    def __init__(self, remote: Remote, progress: Callable[[int], None]) -> None:
        self._remote = remote
        self._progress = progress
        self.stopping = threading.Event()

    def check(self, shard: ShardInfo) -> Bad | None:
        try:
            self._read(shard)
        except BucketMissingError:
            raise
        except (DatasetError, SourceMissingError, ObjectChangedError) as error:
            name = (shard.zip_data or shard.raw_data).basename
            return Bad(name, str(error).removeprefix(f"{self._remote.url.rstrip('/')}/").removeprefix(f"{name}: "))
        return None

    def _read(self, shard: ShardInfo) -> None:
        if shard.raw_meta is not None:
            meta = bytearray()
            for piece in StoredFile(
                self._remote, (shard.raw_meta, shard.zip_meta), shard.compression, check=self._go_on
            ).pieces():
                meta += piece
                self._progress(len(piece))
            read_meta(bytes(meta), shard)
        data = StoredFile(self._remote, (shard.raw_data, shard.zip_data), shard.compression, check=self._go_on)
        pieces = data.pieces()
        if shard.raw_meta is None:
            head, _ = read_head(pieces, shard)
            self._progress(len(head))
        for piece in pieces:
            self._progress(len(piece))

    def _go_on(self) -> None:
        if self.stopping.is_set():
            raise _Stopped
