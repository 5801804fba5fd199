"""The ledger: who has how many blocks of the cache, and whether there is room for more. Pure: it counts, it does
nothing.

Room goes through three states. `try_reserve` claims it before a byte is fetched, `commit` turns it into resident blocks
when the data is in the file, `release` gives it back after the hole was punched (`cancel`: a reservation that came to
nothing). Beside that stand fixed charges: what a dataset's tables, index and state cost as long as its folder exists.

**Invariant:** `used == fixed + the sum of charge(file)`, and `used <= limit` after every call that takes room. A file's
charge is its blocks (resident and reserved) and what the filesystem spends to remember them: an extent tree, at worst
one entry per block, and one page that the directory or the tree may grow by, where it keeps such things on the disk;
pages of the residency bitmaps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import numpy.typing as npt

__all__ = ["BLOCK", "Chunk", "FileKey", "Ledger", "LedgerStatistics", "charge", "chunk_blocks"]

BLOCK = 4096
# One leaf block of ext4's extent tree describes 340 extents; half-full leaves and xfs's larger records are allowed for.
EXTENTS_PER_BLOCK = 128
# One page of a residency bitmap covers this many blocks.
BLOCKS_PER_BITMAP_PAGE = BLOCK * 8
# A block may have a bit in each of a file's bitmaps.
BITMAPS = 3
# No more chunks than this when everything is resident: the policy's memory stays small however large the cache.
MOST_CHUNKS = 65536
# A small cache is cut finer, so that what a few clients hold does not pin all of it.
LEAST_CHUNKS = 64

FileKey = tuple[int, int]  # dataset, file
Chunk = tuple[int, int, int]  # dataset, file, chunk (or cell) of the file


def chunk_blocks(limit: int) -> int:
    """Blocks per chunk (the grain of eviction) for a limit in bytes: a power of two, 1 MiB where that is sensible."""
    size = 1 << 20
    while limit > size * MOST_CHUNKS:
        size *= 2
    while size > 16 * BLOCK and limit < size * LEAST_CHUNKS:
        size //= 2
    return size // BLOCK


def charge(blocks: int, bitmap_pages: int, *, trees: bool = True) -> int:
    """What a file with so many blocks costs in all; `bitmap_pages`: pages that its residency bitmaps lie on.

    `trees`: the filesystem keeps extent trees and directories in blocks.
    """
    if blocks == 0:
        return 0
    tree = -(-blocks // EXTENTS_PER_BLOCK) + 1 if trees else 0
    return blocks + tree + min(BITMAPS * blocks, bitmap_pages)


@dataclass(frozen=True, slots=True)
class LedgerStatistics:
    """The ledger in blocks."""

    limit: int
    used: int
    fixed: int
    resident: int
    reserved: int
    held_chunks: int


class _Accounts:
    """The files of one dataset: counts in arrays, since a dataset may have a million of them."""

    __slots__ = ("pages", "reserved", "resident", "trees")

    def __init__(self, resident: npt.NDArray[np.int64], pages: npt.NDArray[np.int64], *, trees: bool) -> None:
        self.resident = resident.astype(np.int64)
        self.pages = pages
        self.trees = trees
        self.reserved: dict[int, int] = {}

    def charge(self, file: int, more: int = 0) -> int:
        blocks = int(self.resident[file]) + self.reserved.get(file, 0) + more
        return charge(blocks, int(self.pages[file]), trees=self.trees)

    def total(self) -> int:
        n = self.resident
        trees = -(-n // EXTENTS_PER_BLOCK) + 1 if self.trees else 0
        each = n + trees + np.minimum(BITMAPS * n, self.pages)
        return int(each[n > 0].sum())


class Ledger:
    """Blocks of one cache. All methods are atomic: nothing here waits."""

    def __init__(self, limit: int, *, trees: bool = True) -> None:
        """`trees`: whether the filesystem keeps extent trees and directories in blocks."""
        self.limit = limit // BLOCK
        self.trees = trees
        self.used = 0
        self.fixed = 0
        self.resident = 0
        self.reserved = 0
        self._fixed: dict[str, int] = {}
        self._accounts: dict[int, _Accounts] = {}
        self._holds: dict[Chunk, int] = {}

    def __repr__(self) -> str:
        return (
            f"Ledger({self.used} of {self.limit} blocks: {self.resident} resident, {self.reserved} reserved, "
            f"{self.fixed} fixed, {len(self._holds)} chunks held)"
        )

    @property
    def free(self) -> int:
        """Blocks that nobody has claimed; negative when a limit was lowered below what is there."""
        return self.limit - self.used

    def statistics(self) -> LedgerStatistics:
        """A snapshot for status."""
        return LedgerStatistics(self.limit, self.used, self.fixed, self.resident, self.reserved, len(self._holds))

    # ---- what stands as long as a dataset's folder does --------------------------------------------------------------

    def set_fixed(self, name: str, blocks: int) -> None:
        """Charge what is not evictable by itself; 0 removes the charge. Whether it fits is the caller's question."""
        change = blocks - self._fixed.pop(name, 0)
        if blocks:
            self._fixed[name] = blocks
        self.fixed += change
        self.used += change

    def fixed_of(self, name: str) -> int:
        """A fixed charge; 0 where there is none."""
        return self._fixed.get(name, 0)

    def add_dataset(self, dataset: int, resident: npt.NDArray[np.int64], pages: npt.NDArray[np.int64]) -> None:
        """Take in a dataset's files with what is resident already."""
        accounts = self._accounts[dataset] = _Accounts(resident, pages, trees=self.trees)
        self.resident += int(accounts.resident.sum())
        self.used += accounts.total()

    def remove_dataset(self, dataset: int) -> None:
        """Forget a dataset whose folder is gone."""
        accounts = self._accounts.pop(dataset)
        self.resident -= int(accounts.resident.sum())
        self.reserved -= sum(accounts.reserved.values())
        self.used -= accounts.total()
        if accounts.reserved:
            raise ValueError(f"dataset {dataset} is removed while {len(accounts.reserved)} files have reservations")

    # ---- room --------------------------------------------------------------------------------------------------------

    def resident_of(self, dataset: int, file: int) -> int:
        """Resident blocks of a file."""
        return int(self._accounts[dataset].resident[file])

    def reserved_of(self, dataset: int, file: int) -> int:
        """Reserved blocks of a file."""
        return self._accounts[dataset].reserved.get(file, 0)

    def files_with_blocks(self, dataset: int) -> Iterator[int]:
        """Files of which something is resident."""
        return iter(np.flatnonzero(self._accounts[dataset].resident).tolist())

    def resident_blocks_of(self, dataset: int) -> npt.NDArray[np.int64]:
        """Resident blocks of each file of a dataset; to be looked at, not kept."""
        return self._accounts[dataset].resident

    def dataset_resident(self, dataset: int) -> int:
        """Resident blocks of a whole dataset."""
        return int(self._accounts[dataset].resident.sum())

    def shortfall(self, dataset: int, file: int, blocks: int) -> int:
        """How many blocks must be released before so many more can be reserved; 0 when they can be now."""
        accounts = self._accounts[dataset]
        return max(0, accounts.charge(file, blocks) - accounts.charge(file) - self.free)

    def shortfall_of_all(self, claims: Mapping[FileKey, int]) -> int:
        """The same for blocks of several files together."""
        needed = 0
        for (dataset, file), blocks in claims.items():
            accounts = self._accounts[dataset]
            needed += accounts.charge(file, blocks) - accounts.charge(file)
        return max(0, needed - self.free)

    def try_reserve(self, dataset: int, file: int, blocks: int) -> bool:
        """Claim room for blocks about to be fetched; False, and nothing changed, when there is none."""
        if self.shortfall(dataset, file, blocks):
            return False
        self._change(dataset, file, reserved=blocks)
        return True

    def commit(self, dataset: int, file: int, blocks: int) -> None:
        """Reserved blocks have become resident."""
        self._change(dataset, file, resident=blocks, reserved=-blocks)

    def cancel(self, dataset: int, file: int, blocks: int) -> None:
        """Reserved blocks were not needed after all."""
        self._change(dataset, file, reserved=-blocks)

    def release(self, dataset: int, file: int, blocks: int) -> None:
        """Resident blocks are gone from the disk."""
        self._change(dataset, file, resident=-blocks)

    def _change(self, dataset: int, file: int, *, resident: int = 0, reserved: int = 0) -> None:
        accounts = self._accounts[dataset]
        now_resident = int(accounts.resident[file]) + resident
        now_reserved = accounts.reserved.get(file, 0) + reserved
        if now_resident < 0 or now_reserved < 0:
            raise ValueError(f"file {file} of dataset {dataset} would have {now_resident} + {now_reserved} blocks")
        before = accounts.charge(file)
        accounts.resident[file] = now_resident
        if now_reserved:
            accounts.reserved[file] = now_reserved
        else:
            accounts.reserved.pop(file, None)
        self.used += accounts.charge(file) - before
        self.resident += resident
        self.reserved += reserved

    # ---- holds -------------------------------------------------------------------------------------------------------

    def hold(self, cells: Iterable[Chunk]) -> None:
        """Keep the blocks of cells from being evicted; counted, so every hold needs its `unhold`."""
        holds = self._holds
        for cell in cells:
            holds[cell] = holds.get(cell, 0) + 1

    def unhold(self, cells: Iterable[Chunk]) -> list[Chunk]:
        """End one hold of each cell; those that nobody holds any more."""
        holds, free = self._holds, []
        for cell in cells:
            left = holds[cell] - 1
            if left:
                holds[cell] = left
            else:
                del holds[cell]
                free.append(cell)
        return free

    def is_held(self, cell: Chunk) -> bool:
        """Whether anybody holds the cell."""
        return cell in self._holds
