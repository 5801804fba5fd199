"""What `mdsfs plan` plans for: a dataset's own index, or a description of one that does not exist."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mdsfs.errors import UsageError
from mdsfs.plan.shape import Shape
from mdsfs.plan.workload import Stored
from streaming.errors import DatasetError
from streaming.mds.index import INDEX_NAME, MAX_INDEX_BYTES, parse_index
from streaming.mds.seekable import TAIL_SIZE, SeekTable, table_size
from streaming.sizes import parse_size

if TYPE_CHECKING:
    from streaming.mds.shards import ShardInfo
    from streaming.remote import Remote

__all__ = ["Described", "of_source", "of_text"]

KEYS = ("shards", "samples_per_shard", "sample", "ratio", "form", "frame")
FORMS = ("raw", "frames", "whole")
# What the engine keeps of a shard beside its data: an entry of the index and its tables, about.
INDEX_ENTRY = 700
# More would not fit the planner's positions, nor any memory.
MOST_SAMPLES = 1 << 32


@dataclass(frozen=True, slots=True, eq=False)
class Described:
    """A dataset as far as the plan must know it."""

    shape: Shape
    stored: Stored


def of_source(remote: Remote) -> Described:
    """From the index under a URL. A compressed dataset is asked for one shard's end: whether it is made of frames."""
    data, _ = remote.read(INDEX_NAME, limit=MAX_INDEX_BYTES)
    shards = parse_index(data).shards
    samples = np.array([shard.samples for shard in shards], np.int64)
    if not samples.sum():
        raise DatasetError(f"{remote.url}: the dataset has no samples")
    sizes = np.array([sum(raw.bytes for raw, _ in shard.files()) for shard in shards], np.int64)
    stored = np.array([sum((zipped or raw).bytes for raw, zipped in shard.files()) for shard in shards], np.int64)
    compressed = np.array([shard.zip_data is not None for shard in shards], np.bool_)
    frame = _frame(remote, next((shard for shard in shards if shard.zip_data is not None), None))
    return Described(
        Shape(_starts(samples), sizes, stored, compressed & (frame == 0)),
        Stored(frame=frame, index=_tables(len(shards), len(data))),
    )


def _frame(remote: Remote, shard: ShardInfo | None) -> int:
    """Bytes, as shown, of a frame of this shard on average; 0 where it has none that can be fetched alone."""
    if shard is None or shard.zip_data is None or not (shard.compression or "").startswith("zstd"):
        return 0
    name, size = shard.zip_data.basename, shard.zip_data.bytes
    tail, _ = remote.read(name, start=max(size - TAIL_SIZE, 0), stop=size)
    length = table_size(tail)
    if length is None:
        return 0
    if length > len(tail):
        tail, _ = remote.read(name, start=max(size - length, 0), stop=size)
    table = SeekTable.parse(tail, size, shard.raw_data.bytes)
    return shard.raw_data.bytes // max(len(table.raw_at) - 1, 1) if table is not None else 0


def of_text(text: str) -> Described:
    """From `shards=100000,samples_per_shard=1000,sample=64kb[,ratio=0.5][,form=frames,frame=256kb]`."""
    given: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if key not in KEYS or not equals or key in given:
            raise UsageError(f"--synthetic: expected {', '.join(f'{key}=…' for key in KEYS)}, each once, got {part!r}")
        given[key] = value
    shards, each = _count(given, "shards"), _count(given, "samples_per_shard")
    sample = _bytes(given, "sample", None)
    form = given.get("form", "raw")
    if form not in FORMS:
        raise UsageError(f"--synthetic: form: expected one of {', '.join(FORMS)}, got {form!r}")
    if shards * each > MOST_SAMPLES:
        raise UsageError(f"--synthetic: expected at most {MOST_SAMPLES:,} samples, got {shards * each:,}")
    ratio = _ratio(given.get("ratio", "1"))
    sizes = np.full(shards, each * sample, np.int64)
    shape = Shape(
        _starts(np.full(shards, each, np.int64)),
        sizes,
        np.maximum((sizes * ratio).astype(np.int64), 1),
        np.full(shards, form == "whole"),
    )
    frame = _bytes(given, "frame", "256kb") if form == "frames" else 0
    return Described(shape, Stored(frame=frame, index=_tables(shards, shards * INDEX_ENTRY)))


def _starts(samples: np.ndarray[tuple[int], np.dtype[np.int64]]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.concatenate([[0], np.cumsum(samples)]).astype(np.int64)


def _tables(shards: int, index: int) -> int:
    """Index as stored and as shown, tables, state and residency: what the engine charges for a dataset, about."""
    return 2 * index + 200 * shards + 16 * 4096


def _count(given: dict[str, str], key: str) -> int:
    text = given.get(key, "")
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise UsageError(f"--synthetic: {key}: expected a whole number above zero, got {text!r}")
    return int(text)


def _bytes(given: dict[str, str], key: str, default: str | None) -> int:
    text = given.get(key, default)
    try:
        found = parse_size(text or "")
    except ValueError as error:
        raise UsageError(f"--synthetic: {key}: {error}") from None
    if not found:
        raise UsageError(f"--synthetic: {key}: expected a size above zero, got {text!r}")
    return found


def _ratio(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found <= 10:
        raise UsageError(f"--synthetic: ratio: expected stored bytes per byte, above 0 and at most 10, got {text!r}")
    return found
