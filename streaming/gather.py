"""Many samples at once, column by column: numpy finds where the values are, and each is copied once.

Works on addresses (`streaming.addresses`), so that a batch costs the same whether its samples lie in one shard or in a
hundred. What was read from a file that may change under the reader is looked at again when all is copied; if it has
changed, the batch is read once more from private copies of its samples.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from typing import TYPE_CHECKING, Any

import numpy as np

from streaming.addresses import FIRST, memory
from streaming.errors import DatasetError, ShardFormatError
from streaming.reader import most_open
from streaming.views import collect_views

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from streaming.addresses import Located
    from streaming.mds.shards import Schema
    from streaming.mixing import Mix

    Ints = NDArray[np.int64]

__all__ = ["load_batch"]

# Values up to here are copied faster by numpy's indexing than one by one.
SMALL = 8 << 10
# Columns from this many bytes on are copied by two threads: a thread costs 0.16 ms, as much as copying 2 MiB.
SHARED = 8 << 20


def load_batch(
    mix: Mix, ids: Any, columns: Sequence[str] | None, out: dict[str, Any] | None, *, views: bool = False
) -> dict[str, Any]:
    """The samples' columns, each as one array.

    Args:
        mix: Where the samples are.
        ids: Their ids, 0 ≤ id < size; any sequence of integers.
        columns: Which columns; all by default.
        out: What an earlier call gave: its memory is used again where it suffices, so what it held is gone. Worth it
            for large values; batches of small ones are faster without.
        views: Values of varying size as views of the shards instead of copies, see below.

    Returns:
        Column name to values. Of fixed size (numbers, `ndarray:dtype:shape`): an array (n, …). Of varying size: the
        pair (bytes of all values one after the other, as uint8; n + 1 offsets, int64), not decoded. All of it is
        memory that nobody else has.

        With `views` a column of varying size is a list of read-only memoryviews, not decoded. A view of a shard that
        lies in an engine's cache as a whole keeps it there (a shared lock on the cache file, which ends with the
        process at the latest); where that can't be, it is a view of a private copy. It may be used as long as it
        exists; `release()` it, or drop it, and the shard may leave the cache.

    Raises:
        IndexError: an id is out of range.
        KeyError: a column is not in the dataset.
        DatasetError: shards that are not MDS.
    """
    wanted = np.asarray(ids, np.int64).reshape(-1)
    if len(wanted) and not (wanted.min() >= 0 and wanted.max() < mix.num_samples):
        raise IndexError(f"sample ids: expected 0 to {mix.num_samples - 1}, got {wanted.min()} to {wanted.max()}")
    schema = mix.schema_of(int(wanted[0])) if len(wanted) else mix.schema()
    names = list(columns or schema.column_names)
    for name in names:
        _number(schema, name)
    if views:
        fixed = [name for name in names if _shape(schema.column_encodings[_number(schema, name)]) is not None]
        found = _load(mix, wanted, fixed, out) if fixed else {}
        found |= collect_views(mix.read_stored, wanted.tolist(), [name for name in names if name not in found])
        return {name: found[name] for name in names}
    most = max(most_open() // 2, 1)
    if len(wanted) > most:  # may touch more shards than can be open at once
        parts = [_load(mix, wanted[at : at + most], names, None) for at in range(0, len(wanted), most)]
        return {name: _joined([part[name] for part in parts]) for name in names}
    return _load(mix, wanted, names, out)


def _load(mix: Mix, ids: Ints, names: list[str], out: dict[str, Any] | None) -> dict[str, Any]:
    try:
        groups = [_Group(*each) for each in mix.locate(ids)]
        found = _columns(mix, groups, names, len(ids), out)
        if all(group.located.is_right() for group in groups):
            return found
    except ShardFormatError:
        # bytes that were taken away while we looked at them make no sense; if they stay wrong, that is the error
        pass
    groups = [_Group(*each) for each in mix.locate(ids, copied=True)]
    return _columns(mix, groups, names, len(ids), out)


class _Group:
    """Samples of one schema: where their columns' values are."""

    def __init__(self, schema: Schema, places: Ints, located: Located) -> None:
        if schema.format != "mds":
            raise DatasetError(f"load_batch reads MDS shards, not {schema.format}: index the dataset instead")
        self.schema, self.places = schema, places
        self.located = located
        sizes = schema.column_sizes or ()
        self._head = 4 * sum(size is None for size in sizes)
        starts, whole = located.starts, located.stops - located.starts
        if (whole < self._head).any():
            raise ShardFormatError("a sample is shorter than the sizes of its columns: the shard is corrupt")
        words = memory(f"|V{self._head}")[starts - FIRST].view("<u4") if self._head else np.empty(0, "<u4")
        self._words = words.reshape(len(starts), -1).astype(np.int64)
        if not np.array_equal(self._before(len(sizes)), whole):
            raise ShardFormatError("a sample's columns have other sizes than the sample: the shard is corrupt")

    def _before(self, number: int) -> Any:
        """Bytes of a sample in front of this column; int64 (n,), or an int where all have the same."""
        sizes = (self.schema.column_sizes or ())[:number]
        fixed = self._head + sum(size or 0 for size in sizes)
        varying = sizes.count(None)
        return fixed + self._words[:, :varying].sum(axis=1)

    def lengths(self, name: str) -> Ints:
        """Bytes of each value."""
        number = _number(self.schema, name)
        sizes = self.schema.column_sizes or ()
        if (size := sizes[number]) is not None:
            return np.full(len(self._words), size, np.int64)
        return self._words[:, sizes[:number].count(None)]

    def begins(self, name: str) -> Ints:
        """Address of each value."""
        begins: Ints = self.located.starts + self._before(_number(self.schema, name))
        return begins


def _number(schema: Schema, name: str) -> int:
    try:
        return schema.column_names.index(name)
    except ValueError:
        raise KeyError(f"column {name!r}: expected one of {', '.join(schema.column_names)}") from None


def _columns(
    mix: Mix, groups: list[_Group], names: list[str], count: int, out: dict[str, Any] | None
) -> dict[str, Any]:
    schema = groups[0].schema if groups else mix.schema()
    return {name: _column(schema, name, groups, count, (out or {}).get(name)) for name in names}


def _column(schema: Schema, name: str, groups: list[_Group], count: int, old: Any) -> Any:
    if len(groups) == 1:
        lengths, begins = groups[0].lengths(name), groups[0].begins(name)
    else:
        lengths, begins = np.zeros(count, np.int64), np.zeros(count, np.int64)
        for group in groups:
            lengths[group.places], begins[group.places] = group.lengths(name), group.begins(name)
    size = int(lengths[0]) if count else 0
    if 0 < size <= SMALL and (lengths == size).all():
        values = _rows(begins, size, old)
        offsets = np.arange(0, (count + 1) * size, size)
    else:
        offsets = np.zeros(count + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        values = _memory(int(offsets[-1]), old)
        _copy(begins, begins + lengths, offsets.tolist(), values)
    shape = _shape(schema.column_encodings[_number(schema, name)])
    if shape is None:
        return values, offsets
    return values.view(shape[0]).reshape(count, *shape[1])


def _rows(begins: Ints, size: int, old: Any) -> NDArray[np.uint8]:
    """Values of one size, by one fancy indexing."""
    rows: NDArray[np.uint8] = memory(f"|V{size}")[begins - FIRST].view(np.uint8)
    if old is None:
        return rows
    values = _memory(rows.nbytes, old)
    values[:] = rows
    return values


def _copy(begins: Ints, ends: Ints, offsets: list[int], values: NDArray[np.uint8]) -> None:
    """Each value to its place."""
    sources, targets = list(zip((begins - FIRST).tolist(), (ends - FIRST).tolist(), strict=True)), offsets[1:]
    if len(values) < SHARED or len(os.sched_getaffinity(0)) < 2:
        _copy_slices(sources, targets, 0, values)
        return
    half = bisect_right(offsets, len(values) // 2) - 1
    other = threading.Thread(target=_copy_arrays, args=(sources[half:], targets[half:], offsets[half], values))
    other.start()
    try:
        _copy_arrays(sources[:half], targets[:half], 0, values)
    finally:
        other.join()


def _copy_slices(sources: list[tuple[int, int]], targets: list[int], start: int, values: NDArray[np.uint8]) -> None:
    """Slices of memoryviews are the fastest copies that Python has."""
    into, source = memoryview(values), memoryview(memory("|u1"))  # type: ignore[arg-type]  # numpy's arrays are buffers
    for (begin, end), stop in zip(sources, targets, strict=True):
        into[start:stop] = source[begin:end]
        start = stop


def _copy_arrays(sources: list[tuple[int, int]], targets: list[int], start: int, values: NDArray[np.uint8]) -> None:
    """Slices of arrays, which let other threads run meanwhile."""
    source = memory("|u1")
    for (begin, end), stop in zip(sources, targets, strict=True):
        values[start:stop] = source[begin:end]
        start = stop


def _memory(size: int, old: Any) -> NDArray[np.uint8]:
    """So many bytes, of what an earlier call gave where that suffices."""
    base = old[0] if isinstance(old, tuple) else old
    while base is not None and base.base is not None:
        base = base.base
    if not isinstance(base, np.ndarray) or base.nbytes < size:
        base = np.empty(size + size // 8, np.uint8)  # the next batch may be somewhat larger
    found: NDArray[np.uint8] = base.view(np.uint8)[:size]
    return found


def _shape(encoding: str) -> tuple[np.dtype[Any], tuple[int, ...]] | None:
    """dtype and shape of values that are arrays or numbers of fixed size; None for all others."""
    kind, _, rest = encoding.partition(":")
    if kind == "int":
        return np.dtype("<i8"), ()
    if kind == "ndarray":
        name, _, sides = rest.partition(":")
        return (np.dtype(name).newbyteorder("<"), tuple(map(int, sides.split(",")))) if sides else None
    if kind.rstrip("0123456789") in ("int", "uint", "float"):
        return np.dtype(kind).newbyteorder("<"), ()
    return None


def _joined(parts: list[Any]) -> Any:
    """One column of several batches."""
    if not isinstance(parts[0], tuple):
        return np.concatenate(parts)
    lengths = np.concatenate([np.diff(offsets) for _, offsets in parts])
    return np.concatenate([values for values, _ in parts]), np.concatenate([[0], np.cumsum(lengths)])
