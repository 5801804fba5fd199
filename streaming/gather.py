"""Many samples at once, column by column: numpy finds where the values are, and each is copied once.

Works on addresses (`streaming.addresses`), so that a batch costs the same whether its samples lie in one shard or in a
hundred. What was read from a file that may change under the reader is looked at again when all is copied; if it has
changed, the batch is read once more from private copies of its samples.
"""

from __future__ import annotations

import _thread
import os
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
# Columns from this many bytes on are copied by two threads: below, starting the other one costs more than it saves.
SHARED = 4 << 20
# From here on numpy asks for huge pages, into which a seventh to a third more is copied a second. Memory
# that is asked for and not touched costs nothing, so that is what batches of a megabyte ask for.
HUGE = 4 << 20


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
    if views:
        return _load_views(mix, wanted, columns, out)
    most = max(most_open() // 2, 1)
    if len(wanted) <= most:
        return _load(mix, wanted, columns, out)
    parts = []  # it may touch more shards than can be open at once
    for at in range(0, len(wanted), most):
        parts.append(_load(mix, wanted[at : at + most], columns, None))
        columns = list(parts[0])
    return {name: _joined([part[name] for part in parts]) for name in parts[0]}


def _load_views(mix: Mix, ids: Ints, columns: Sequence[str] | None, out: dict[str, Any] | None) -> dict[str, Any]:
    schema = mix.schema_of(int(ids[0])) if len(ids) else mix.schema()
    names = columns or schema.column_names
    fixed = [name for name in names if _shape(schema.column_encodings[_number(schema, name)]) is not None]
    found = _load(mix, ids, fixed, out) if fixed else {}
    found |= collect_views(mix.read_stored, ids.tolist(), [name for name in names if name not in found])
    return {name: found[name] for name in names}


def _load(mix: Mix, ids: Ints, columns: Sequence[str] | None, out: dict[str, Any] | None) -> dict[str, Any]:
    try:
        groups = [_Group(*each) for each in mix.locate(ids)]
        found = _columns(mix, groups, columns, len(ids), out)
        if all(group.located.is_right() for group in groups):
            return found
    except ShardFormatError:
        # bytes that were taken away while we looked at them make no sense; if they stay wrong, that is the error
        pass
    groups = [_Group(*each) for each in mix.locate(ids, copied=True)]
    return _columns(mix, groups, columns, len(ids), out)


class _Group:
    """Samples of one schema: where their columns' values are."""

    def __init__(self, schema: Schema, places: Ints, located: Located) -> None:
        if schema.format != "mds":
            raise DatasetError(f"load_batch reads MDS shards, not {schema.format}: index the dataset instead")
        self.schema, self.places = schema, places
        self.located = located
        self._sizes = sizes = schema.column_sizes or ()
        varying = sizes.count(None)
        self._head = head = 4 * varying
        starts, whole = located.starts, located.stops - located.starts
        if whole.min() < head:
            raise ShardFormatError("a sample is shorter than the sizes of its columns: the shard is corrupt")
        words = memory(f"|V{head}")[starts - FIRST].view("<u4") if head else np.empty(0, "<u4")
        # of each column of varying size, the bytes of it and those in front of it
        self._ends = np.cumsum(words.reshape(len(starts), varying).T, axis=0, dtype=np.int64)
        if (self._before(len(sizes)) != whole).any():
            raise ShardFormatError("a sample's columns have other sizes than the sample: the shard is corrupt")

    def _before(self, number: int) -> Any:
        """Bytes of a sample in front of this column; int64 (n,), or an int where all have the same."""
        sizes = self._sizes[:number]
        fixed, varying = self._head + sum(size or 0 for size in sizes), sizes.count(None)
        return self._ends[varying - 1] + fixed if varying else fixed

    def lengths(self, name: str) -> Ints:
        """Bytes of each value."""
        number = _number(self.schema, name)
        if (size := self._sizes[number]) is not None:
            return np.full(len(self.located.starts), size, np.int64)
        at = self._sizes[:number].count(None)
        lengths: Ints = self._ends[at] - self._ends[at - 1] if at else self._ends[0]
        return lengths

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
    mix: Mix, groups: list[_Group], columns: Sequence[str] | None, count: int, out: dict[str, Any] | None
) -> dict[str, Any]:
    # columns are those of the first sample's shard, as it has them
    schema = min(groups, key=lambda group: int(group.places[0])).schema if groups else mix.schema()
    names = columns or schema.column_names
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
        _copy(begins, begins + lengths, offsets[1:].tolist(), values)
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


def _copy(begins: Ints, ends: Ints, stops: list[int], values: NDArray[np.uint8]) -> None:
    """Each value to its place, which ends at `stops`."""
    pieces = zip((begins - FIRST).tolist(), (ends - FIRST).tolist(), stops, strict=True)
    if len(values) < SHARED or len(os.sched_getaffinity(0)) < 2:
        # slices of memoryviews are the fastest copies that Python has
        into, source = memoryview(values), memoryview(memory("|u1"))  # type: ignore[arg-type]  # arrays are buffers
        start = 0
        for begin, end, stop in pieces:
            into[start:stop] = source[begin:end]
            start = stop
    else:
        _copy_by_two(list(pieces), values)


def _copy_by_two(pieces: list[tuple[int, int, int]], values: NDArray[np.uint8]) -> None:
    """Each takes the next piece until none is left, so that a thread that gets no core holds nobody up.

    Started without `threading.Thread`, which waits until the thread runs: that takes as long as copying 2 MiB.
    """
    source, left = memory("|u1"), iter(pieces)
    wrong: list[Exception] = []

    def copy() -> None:
        for begin, end, stop in left:
            values[stop - (end - begin) : stop] = source[begin:end]  # slices of arrays let other threads run meanwhile

    def help_out() -> None:
        try:
            copy()
        except Exception as error:
            wrong.append(error)
        finally:
            done.release()

    done = _thread.allocate_lock()
    done.acquire()
    try:
        _thread.start_new_thread(help_out, ())
    except RuntimeError:  # no more threads
        done.release()
    try:
        copy()
    finally:
        done.acquire()
    if wrong:
        raise wrong[0]


def _memory(size: int, old: Any) -> NDArray[np.uint8]:
    """So many bytes, of what an earlier call gave where that suffices."""
    base = old[0] if isinstance(old, tuple) else old
    while base is not None and base.base is not None:
        base = base.base
    if not isinstance(base, np.ndarray) or base.nbytes < size:
        most = size + size // 8  # the next batch may be somewhat larger
        base = np.empty(max(most, HUGE) if most > HUGE // 4 else most, np.uint8)
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
