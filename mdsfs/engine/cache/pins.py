"""Which files must stay: pinned by a command, until one unpins them. The set outlives the engine, in the state tables.

Pure but for `load`: it counts. A pinned file is no victim; whether it is there is another matter, since a pin fetches
nothing. What all pinned files would take once they are there fits into the limit, beside what else is needed for the
cache to work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .ledger import charge

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from .dataset import Dataset

__all__ = ["Pins"]


class Pins:
    """The pinned files of all datasets."""

    def __init__(self) -> None:
        self._files: dict[int, set[int]] = {}
        self._blocks: dict[int, int] = {}

    def __repr__(self) -> str:
        return f"Pins({sum(map(len, self._files.values()))} files, {self.blocks} blocks)"

    @property
    def blocks(self) -> int:
        """What all pinned files take in the ledger when they are there."""
        return sum(self._blocks.values())

    def has(self, dataset: int, file: int) -> bool:
        """Whether a file is pinned."""
        return dataset in self._files and file in self._files[dataset]

    def of(self, dataset: int) -> Collection[int]:
        """The pinned files of a dataset."""
        return self._files.get(dataset, ())

    def cost(self, dataset: Dataset, files: Iterable[int]) -> int:
        """Blocks that these files would take beside those that are pinned already."""
        fresh = set(files).difference(self.of(dataset.number))
        pages = dataset.bitmap_pages() if fresh else ()
        return sum(charge(dataset.blocks(file), int(pages[file])) for file in fresh)

    def blocks_of(self, dataset: int) -> int:
        """What the pinned files of a dataset take when they are there."""
        return self._blocks.get(dataset, 0)

    def load(self, dataset: Dataset) -> None:
        """Take in a dataset with the pins that its state table remembers."""
        self.add(dataset, dataset.folder.state.kept_files())

    def add(self, dataset: Dataset, files: Collection[int]) -> None:
        """These files must stay."""
        if files:
            self._blocks[dataset.number] = self.blocks_of(dataset.number) + self.cost(dataset, files)
            self._files.setdefault(dataset.number, set()).update(files)

    def remove(self, dataset: Dataset, files: Iterable[int]) -> None:
        """These need not any more."""
        left = set(self.of(dataset.number)).difference(files)
        self.forget(dataset.number)
        self.add(dataset, left)

    def forget(self, dataset: int) -> None:
        """A dataset's folder is gone."""
        self._files.pop(dataset, None)
        self._blocks.pop(dataset, None)
