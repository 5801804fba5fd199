"""One dataset in the plan's terms: where its shards and samples lie in its files, and what of them is resident."""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np

from mdsfs.plan.shape import Shape
from streaming.engine.residency import BLOCK
from streaming.errors import ShardFormatError
from streaming.mds.layout import read_offsets

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..cache.dataset import Dataset, Run

__all__ = ["PlannedDataset"]

# Tables of offsets that are kept as arrays; one that is gone is read again from the cache file.
OFFSETS_BYTES = 64 << 20


class PlannedDataset:
    """One dataset of which orders are known: where its shards and samples lie in its files."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.shape, self._lines = _shape(dataset)
        self._offsets: OrderedDict[int, NDArray[np.int64]] = OrderedDict()
        self._bytes = 0

    def __repr__(self) -> str:
        return f"PlannedDataset({self.dataset.number}, {self.shape.shards} shards, {len(self._offsets)} with offsets)"

    @property
    def is_compressed_whole(self) -> bool:
        """Whether there are shards that can't be fetched by range because of how they are compressed."""
        compressed = self.dataset.tables.files["compression"][self.dataset.tables.shards["file"]] >= 0
        return bool((self.shape.whole & compressed).any()) and not self.dataset.shard_level

    def files(self, shard: int) -> tuple[int, ...]:
        """The files of a shard: two for the line formats."""
        file = int(self.dataset.tables.shards["file"][shard])
        return (file, file + 1) if self._lines[shard] else (file,)

    def shard_of(self, file: int) -> int:
        """The shard that a file belongs to; -1 for none."""
        return int(self.dataset.tables.files["shard"][file])

    def held(self, shard: int) -> int:
        """Bytes of a shard that are resident, in whole blocks."""
        residency = self.dataset.residency
        return BLOCK * sum(residency.count(file, 0, self.dataset.blocks(file)) for file in self.files(shard))

    def offsets(self, shard: int) -> NDArray[np.int64] | None:
        """int64 [samples + 1]: where each sample begins in its file; None where that is not known."""
        found = self._offsets.get(shard)
        if found is None:
            return self.load(shard)
        self._offsets.move_to_end(shard)
        return found

    def load(self, shard: int) -> NDArray[np.int64] | None:
        """The same, read from the cache file if its head is resident, and remembered."""
        found = self.read(shard)
        if found is not None:
            self.keep(shard, found)
        return found

    def read(self, shard: int) -> NDArray[np.int64] | None:
        """The same, not remembered: also for a thread."""
        if self.shape.whole[shard]:
            return None
        file, head = self.files(shard)[0], self.shape.head_bytes(shard)
        if not self.dataset.is_resident(file, 0, head):
            return None
        try:
            data = _read(self.dataset, file, head)
            return read_offsets(data, int(self.shape.first[shard + 1] - self.shape.first[shard]), self._size(file))
        except (OSError, ShardFormatError):
            return None  # the reader will hear of it

    def keep(self, shard: int, found: NDArray[np.int64]) -> None:
        """Remember offsets."""
        self.forget(shard)
        self._offsets[shard] = found
        self._bytes += found.nbytes
        while self._bytes > OFFSETS_BYTES and len(self._offsets) > 1:
            self._bytes -= self._offsets.popitem(last=False)[1].nbytes

    def forget(self, shard: int) -> None:
        """The head that the offsets are from has gone."""
        found = self._offsets.pop(shard, None)
        self._bytes -= found.nbytes if found is not None else 0

    def _size(self, file: int) -> int:
        return self.dataset.size(file)

    def run_of(self, offsets: NDArray[np.int64], first: int, stop: int) -> Run:
        """The blocks that samples first:stop of a shard lie on."""
        begin, end = int(offsets[first]) // BLOCK, -(-int(offsets[stop]) // BLOCK)
        return begin, end - begin

    def span_of(self, offsets: NDArray[np.int64], first: int, stop: int) -> tuple[int, int]:
        """The bytes of samples first:stop of a shard, to be fetched without what else lies on their outer blocks.

        A sample that lies on one block needs all of it: where such a one begins or ends the run, so do whole blocks.
        """
        begin, end = int(offsets[first]), int(offsets[stop])
        if int(offsets[first + 1]) <= begin // BLOCK * BLOCK + BLOCK:
            begin = begin // BLOCK * BLOCK
        if int(offsets[stop - 1]) >= (end - 1) // BLOCK * BLOCK:
            end = -(-end // BLOCK) * BLOCK
        return begin, end

    def widened(
        self, offsets: NDArray[np.int64], span: tuple[int, int], most: tuple[int, int], wanted: NDArray[np.bool_]
    ) -> tuple[int, int]:
        """A range of bytes with the samples beside it that are wanted, as far as they follow it without a gap.

        `most`: contains the range, and bounds the result; `wanted`: bool [samples of the shard].
        """
        begin, end = int(offsets.searchsorted(span[0], "right")) - 1, int(offsets.searchsorted(span[1], "left"))
        first, stop = begin, end
        while first > 0 and offsets[first - 1] >= most[0] and wanted[first - 1]:
            first -= 1
        while stop < len(wanted) and offsets[stop + 1] <= most[1] and wanted[stop]:
            stop += 1
        low, high = self.span_of(offsets, first, stop)
        return max(low, most[0]) if first < begin else span[0], min(high, most[1]) if stop > end else span[1]

    def samples_in(self, offsets: NDArray[np.int64], first: int, count: int) -> tuple[int, int]:
        """Samples of a shard that have a byte in these blocks."""
        low = int(offsets.searchsorted(first * BLOCK, "right")) - 1
        high = int(offsets.searchsorted((first + count) * BLOCK, "left"))
        return max(low, 0), min(max(high, max(low, 0)), len(offsets) - 1)


def _shape(dataset: Dataset) -> tuple[Shape, NDArray[np.bool_]]:
    """The dataset in the plan's terms, its sizes in whole blocks; and which shards are of a line format."""
    tables = dataset.tables
    rows = tables.shards["file"].astype(np.int64)
    lines = np.array([schema["format"] != "mds" for schema in tables.schemas], np.bool_)[tables.shards["schema"]]
    meta = np.minimum(rows + 1, len(tables.files) - 1)
    sizes, stored = _blocks(tables.files["size"]), tables.files["stored"]
    compressed = [dataset.whole_only or not each.startswith("zstd") for each in tables.compressions]
    whole = np.array([*compressed, False], np.bool_)[tables.files["compression"][rows]]
    shape = Shape(
        np.asarray(tables.first_sample, np.int64),
        sizes[rows] + np.where(lines, sizes[meta], 0),
        stored[rows] + np.where(lines, stored[meta], 0),
        whole | lines | dataset.shard_level,
    )
    return shape, lines


def _blocks(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    return -(-sizes // BLOCK) * BLOCK


def _read(dataset: Dataset, file: int, length: int) -> bytes:
    fd = dataset.folder.read_fd(file)
    try:
        return os.pread(fd, length, 0)
    finally:
        os.close(fd)
