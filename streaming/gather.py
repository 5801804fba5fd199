"""Many samples at once, column by column: numpy finds where the values are, and each is copied once.

Shards that may change under the reader give private copies of the samples first; the rest is the same for all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from streaming.errors import DatasetError, ShardFormatError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from streaming.mds.shards import Schema
    from streaming.mixing import Mix

    Ints = NDArray[np.int64]

__all__ = ["load_batch"]

# Values up to here are copied faster by numpy's indexing than one by one.
SMALL = 16 << 10


def load_batch(mix: Mix, ids: Any, columns: Sequence[str] | None, out: dict[str, Any] | None) -> dict[str, Any]:
    """The samples' columns, each as one array.

    Args:
        mix: Where the samples are.
        ids: Their ids, 0 ≤ id < size; any sequence of integers.
        columns: Which columns; all by default.
        out: What an earlier call gave: its memory is used again where it suffices, so what it held is gone.

    Returns:
        Column name to values. Of fixed size (numbers, `ndarray:dtype:shape`): an array (n, …). Of varying size: the
        pair (bytes of all values one after the other, as uint8; n + 1 offsets, int64), not decoded. All of it is
        memory that nobody else has.

    Raises:
        IndexError: an id is out of range.
        KeyError: a column is not in the dataset.
        DatasetError: shards that are not MDS.
    """
    wanted = np.asarray(ids, np.int64).reshape(-1)
    if len(wanted) and not (wanted.min() >= 0 and wanted.max() < mix.num_samples):
        raise IndexError(f"sample ids: expected 0 to {mix.num_samples - 1}, got {wanted.min()} to {wanted.max()}")
    pieces = [_Piece(*each) for each in _by_shard(mix, wanted)]
    schema = pieces[0].schema if pieces else mix.schema()
    return {
        name: _column(schema, name, pieces, len(wanted), (out or {}).get(name))
        for name in columns or schema.column_names
    }


def _by_shard(mix: Mix, ids: Ints) -> list[tuple[Any, int, Ints, Ints]]:
    """(part, shard, indices within the shard, places in `ids`) of each shard that `ids` touch."""
    found = []
    for part, places, own in mix.split(ids):
        shards, indices = part.tables.shard_of_sample(own)
        order = np.argsort(shards, kind="stable")
        numbers, starts = np.unique(shards[order], return_index=True)
        for number, rows in zip(numbers.tolist(), np.split(order, starts[1:]), strict=True):
            found.append((part, number, indices[rows], places[rows]))
    return found


class _Piece:
    """Samples of one shard: where their columns' values are."""

    def __init__(self, part: Any, shard: int, indices: Ints, places: Ints) -> None:
        self.schema: Schema = part.schema(shard)
        if self.schema.format != "mds":
            raise DatasetError(f"load_batch reads MDS shards, not {self.schema.format}: index the dataset instead")
        self.places = places
        self.data, starts, stops = part.bytes_of(shard, indices)
        sizes = self.schema.column_sizes or ()
        varying = [at for at, size in enumerate(sizes) if size is None]
        head = 4 * len(varying)
        if len(starts) and (starts + head > stops).any():
            raise ShardFormatError(f"shard {shard}: a sample is shorter than the sizes of its columns")
        self._lengths = np.empty((len(indices), len(sizes)), np.int64)
        self._lengths[:] = [size or 0 for size in sizes]
        if varying:
            words = np.frombuffer(self.data, np.uint8)[starts[:, None] + np.arange(head)]
            self._lengths[:, varying] = words.view("<u4")
        ends = starts[:, None] + head + np.cumsum(self._lengths, axis=1)
        if len(starts) and not np.array_equal(ends[:, -1], stops):
            raise ShardFormatError(f"shard {shard}: a sample's columns have other sizes than the sample")
        self._begins = ends - self._lengths

    def column(self, name: str) -> int:
        try:
            return self.schema.column_names.index(name)
        except ValueError:
            raise KeyError(f"column {name!r}: expected one of {', '.join(self.schema.column_names)}") from None

    def lengths(self, name: str) -> Ints:
        """Bytes of each value."""
        return self._lengths[:, self.column(name)]

    def copy(self, name: str, into: memoryview, at: Ints) -> None:
        """Write each value to its place."""
        begins, lengths = self._begins[:, self.column(name)], self._lengths[:, self.column(name)]
        size = int(lengths[0])
        if 0 < size <= SMALL and not (lengths != size).any():
            self._copy_rows(begins, size, into, at)
            return
        data = memoryview(self.data)
        ends, stops = (begins + lengths).tolist(), (at + lengths).tolist()
        for begin, end, start, stop in zip(begins.tolist(), ends, at.tolist(), stops, strict=True):
            into[start:stop] = data[begin:end]

    def _copy_rows(self, begins: Ints, size: int, into: memoryview, at: Ints) -> None:
        """Values of one size by one fancy indexing: a window of that size at every byte of the shard, and of them some.

        For small values: it copies twice, where a loop over slices takes longer than the second copy.
        """
        rows = sliding_window_view(np.frombuffer(self.data, np.uint8), size)[begins]
        target = np.frombuffer(into, np.uint8)
        first = int(at[0])
        if np.array_equal(at, np.arange(first, first + len(at) * size, size)):
            target[first : first + len(at) * size].reshape(-1, size)[:] = rows
        elif not first % size and not (at % size).any():
            target[: len(target) // size * size].reshape(-1, size)[at // size] = rows
        else:
            sliding_window_view(target, size, writeable=True)[at] = rows


def _column(schema: Schema, name: str, pieces: list[_Piece], count: int, old: Any) -> Any:
    lengths = np.zeros(count, np.int64)
    for piece in pieces:
        lengths[piece.places] = piece.lengths(name)
    offsets = np.zeros(count + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    values = _memory(int(offsets[-1]), old)
    view = memoryview(values)  # type: ignore[arg-type]  # numpy's arrays are buffers
    for piece in pieces:
        piece.copy(name, view, offsets[piece.places])
    at = schema.column_names.index(name)
    shape = _shape(schema.column_encodings[at])
    if shape is None:
        return values, offsets
    return values.view(shape[0]).reshape(count, *shape[1])


def _memory(size: int, old: Any) -> NDArray[np.uint8]:
    """So many bytes, of what an earlier call gave where that suffices."""
    base = old[0] if isinstance(old, tuple) else old
    while base is not None and base.base is not None:
        base = base.base
    if not isinstance(base, np.ndarray) or base.dtype != np.uint8 or base.nbytes < size:
        base = np.empty(size + size // 8, np.uint8)  # the next batch may be somewhat larger
    found: NDArray[np.uint8] = base[:size]
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
