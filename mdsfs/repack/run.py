"""A whole repack: which shards there are, which are done, all the others beside each other, the indexes last."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mdsfs.errors import UsageError
from mdsfs.source.datasets import find_datasets, list_objects, renamed
from streaming.errors import DatasetError, RemoteError
from streaming.mds.index import dump_index

from .records import Records
from .result import is_result
from .rewrite import Rewriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from mdsfs.source.datasets import Found, FoundDataset
    from streaming.mds.shards import ShardInfo
    from streaming.remote import Remote

    from .rewrite import Written
    from .target import Target

__all__ = ["Repacked", "repack"]


@dataclass(frozen=True, slots=True)
class Repacked:
    """What a repack did. Bytes are of data and meta files: raw, stored in the source, stored in the destination."""

    datasets: int
    shards: int
    found_done: int
    """Shards that an earlier run had finished."""
    samples: int
    raw_bytes: int
    stored_before: int
    stored_after: int
    left_out: int
    """Objects of the source that no dataset names: they are not copied."""
    warnings: tuple[str, ...]


class _Stopped(Exception):
    """Another shard has failed: this one need not go on."""


def repack(
    source: Remote,
    destination: Remote,
    target: Target,
    *,
    jobs: int,
    started: Callable[[int, int], Callable[[int], None]] = lambda _total, _done: lambda _count: None,
) -> Repacked:
    """Rewrite every dataset under `source` into `destination`, `jobs` shards at a time.

    May be killed at any instant and run again: what it finished is recognised. `started` is told the raw bytes in all
    and those that are done already, and gives what hears of each further piece, from any thread.
    """
    found = find_datasets(source)
    shards = _all_shards(found)
    objects = list_objects(destination)
    records = Records(destination, objects)
    job = {"indexes": {each.key: _digest(each.data) for each in found.datasets}, **target.to_json()}
    earlier = records.job()
    if earlier is not None and not records.is_same(earlier, job):
        raise UsageError(
            f"{destination.url} has an unfinished repack of something else or into another form: repeat that one, or "
            "choose an empty DEST"
        )
    if any(each.key in objects for each in found.datasets):
        done = is_result(found, destination, objects, target)
        if done is not None:
            return _summary(found, shards, done, len(shards), _tidied(records, _put(found, done)))
        if earlier is None:
            raise UsageError(f"{destination.url} has another dataset already: choose an empty DEST")
    if earlier is None:
        records.begin(job)
    written: dict[str, Written] = {}
    if earlier is not None:
        for name, shard in shards.items():
            if (before := records.find(shard, target.compression, target.hashes_of(shard))) is not None:
                written[name] = before
    found_done = len(written)
    rest = [shard for name, shard in shards.items() if name not in written]
    left = sum(shard.raw_data.bytes for shard in rest)
    total = sum(shard.raw_data.bytes for shard in shards.values())
    _rewrite_all(source, destination, target, rest, written, records, jobs, started(total, total - left))
    new = {name: each.shard for name, each in written.items()}
    for dataset in reversed(found.datasets):  # the root's index comes last of all
        destination.put(dataset.key, dump_index(_of_dataset(dataset, new)))
    return _summary(found, shards, new, found_done, _tidied(records, _put(found, new)))


def _all_shards(found: Found) -> dict[str, ShardInfo]:
    """Every shard once, by the key of its raw data file: a merged index names shards of the indexes below it."""
    shards: dict[str, ShardInfo] = {}
    for dataset in found.datasets:
        for shard in dataset.shards():
            other = shards.setdefault(shard.raw_data.basename, shard)
            if other != shard:
                raise DatasetError(
                    f"{dataset.key} and an index above it describe {shard.raw_data.basename} differently"
                )
    return shards


def _of_dataset(dataset: FoundDataset, new: Mapping[str, ShardInfo]) -> Iterable[ShardInfo]:
    cut = len(dataset.prefix) + 1 if dataset.prefix else 0
    return (renamed(new[shard.raw_data.basename], lambda name: name[cut:]) for shard in dataset.shards())


def _rewrite_all(
    source: Remote,
    destination: Remote,
    target: Target,
    rest: Iterable[ShardInfo],
    written: dict[str, Written],
    records: Records,
    jobs: int,
    progress: Callable[[int], None],
) -> None:
    stopping = threading.Event()

    def check() -> None:
        if stopping.is_set():
            raise _Stopped

    rewriter = Rewriter(source, destination, target, check=check, progress=progress)

    def one(shard: ShardInfo) -> Written:
        check()
        new = rewriter.rewrite(shard)
        records.add(new)
        return new

    with ThreadPoolExecutor(jobs, thread_name_prefix="repack") as pool:
        try:
            for future in as_completed([pool.submit(one, shard) for shard in rest]):
                new = future.result()
                written[new.shard.raw_data.basename] = new
        except BaseException:
            stopping.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _tidied(records: Records, finished: set[str]) -> tuple[str, ...]:
    """Remove the records; where the store does not let us, the dataset is whole all the same, and a warning says so."""
    try:
        records.clear(finished)
    except RemoteError as error:
        return (f"the records of this repack (.repack/) can't be removed: {error}",)
    return ()


def _put(found: Found, shards: Mapping[str, ShardInfo]) -> set[str]:
    """The keys of shards and indexes."""
    names = {(stored or raw).basename for shard in shards.values() for raw, stored in shard.files()}
    return names | {each.key for each in found.datasets}


def _summary(
    found: Found, old: Mapping[str, ShardInfo], new: Mapping[str, ShardInfo], found_done: int, warnings: tuple[str, ...]
) -> Repacked:
    return Repacked(
        datasets=len(found.datasets),
        shards=len(old),
        found_done=found_done,
        samples=sum(shard.samples for shard in old.values()),
        raw_bytes=sum(raw.bytes for shard in old.values() for raw, _ in shard.files()),
        stored_before=_stored_bytes(old),
        stored_after=_stored_bytes(new),
        left_out=len(found.objects.keys() - _put(found, old)) if found.objects is not None else 0,
        warnings=found.warnings + warnings,
    )


def _stored_bytes(shards: Mapping[str, ShardInfo]) -> int:
    return sum((stored or raw).bytes for shard in shards.values() for raw, stored in shard.files())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
