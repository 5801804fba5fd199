"""Whether a destination holds already what a repack would put there: then the one that wrote it was only killed after
its last step, or somebody repeats a command.

The indexes tell all but the frames, of which those of one shard are looked at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mdsfs.source.datasets import FoundDataset
from mdsfs.source.stored import StoredFile, read_head, read_meta
from streaming.errors import IndexFormatError, ShardFormatError
from streaming.mds.index import MAX_INDEX_BYTES, parse_index
from streaming.mds.seekable import FOOTER_SIZE, SeekTable, plan_frames, table_size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mdsfs.source.datasets import Found
    from streaming.mds.shards import ShardInfo
    from streaming.remote import ObjectInfo, Remote

    from .target import Target

__all__ = ["is_result"]


def is_result(
    found: Found, destination: Remote, objects: Mapping[str, ObjectInfo], target: Target
) -> dict[str, ShardInfo] | None:
    """The destination's shards by the key of their raw data file, if they are the source's in the form asked for."""
    shards: dict[str, ShardInfo] = {}
    for dataset in found.datasets:
        if dataset.key not in objects:
            return None
        data, _ = destination.read(dataset.key, limit=MAX_INDEX_BYTES)
        try:
            its_own = FoundDataset(dataset.prefix, parse_index(data), data)
        except IndexFormatError:
            return None
        old, new = list(dataset.shards()), list(its_own.shards())
        if len(old) != len(new) or not all(map(_is_repacked, old, new, [target] * len(old), [objects] * len(old))):
            return None
        shards.update((shard.raw_data.basename, shard) for shard in new)
    largest = max(shards.values(), key=lambda shard: shard.raw_data.bytes, default=None)
    if largest is not None and target.compression is not None and not _has_frames(largest, destination, target):
        return None
    return shards


def _is_repacked(old: ShardInfo, new: ShardInfo, target: Target, objects: Mapping[str, ObjectInfo]) -> bool:
    """Whether `new` is what becomes of `old`."""
    if (new.schema, new.samples, new.size_limit) != (old.schema, old.samples, old.size_limit):
        return False
    if (new.compression, new.hashes) != (target.compression, target.hashes_of(old)):
        return False
    for (raw, stored), (old_raw, _) in zip(new.files(), old.files(), strict=True):
        differ = any(old_raw.hashes.get(name, digest) != digest for name, digest in raw.hashes.items())
        if raw[:2] != old_raw[:2] or differ:
            return False
        info = objects.get((stored or raw).basename)
        if info is None or info.size != (stored or raw).bytes:
            return False
    return True


def _has_frames(shard: ShardInfo, remote: Remote, target: Target) -> bool:
    """Whether a shard of the destination is cut as the target says."""
    if shard.raw_meta is not None:
        meta = StoredFile(remote, (shard.raw_meta, shard.zip_meta), shard.compression)
        cuts = read_meta(b"".join(meta.pieces()), shard)
    else:
        pieces = StoredFile(remote, (shard.raw_data, shard.zip_data), shard.compression).pieces()
        _, cuts = read_head(pieces, shard)
    assert shard.zip_data is not None
    key, size = shard.zip_data.basename, shard.zip_data.bytes
    footer, _ = remote.read(key, start=max(0, size - FOOTER_SIZE))
    length = table_size(footer)
    if length is None or length > size:
        return False
    try:
        table = SeekTable.parse(remote.read(key, start=size - length)[0], size, shard.raw_data.bytes)
    except ShardFormatError:
        return False
    return table is not None and np.array_equal(table.raw_at, plan_frames(cuts, target.frame))
