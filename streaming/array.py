"""Indexing a sequence by more than an integer: slices, lists, nested lists and numpy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["Array"]


class Array:
    """Gives `__getitem__` to a class that has `size` and `get_item(0 <= id < size)`."""

    @property
    def size(self) -> int:
        """How many items there are."""
        raise NotImplementedError

    def get_item(self, sample_id: int) -> Any:
        """One item; ids are from 0 to size - 1. The hook that subclasses override."""
        raise NotImplementedError

    def __getitem__(self, at: Any) -> Any:
        """An item for an integer (negative ones count from the end), else a list of items, nested as `at` is.

        Raises IndexError for an integer outside the sequence, ValueError for anything that is no index.
        """
        if isinstance(at, (int, np.integer)):
            size = self.size
            if not -size <= at < size:
                raise IndexError(f"index {at} is out of range for {size} samples")
            return self.get_item(int(at) + size if at < 0 else int(at))
        if isinstance(at, slice):
            return [self.get_item(sample_id) for sample_id in range(*at.indices(self.size))]
        if isinstance(at, (list, np.ndarray)):
            return [self[each] for each in at]
        raise ValueError(f"Unsupported argument type passed to __getitem__: {type(at)}")

    def __getitems__(self, ids: list[int]) -> list[Any]:
        """The items of a batch, as torch's DataLoader asks a map-style dataset for them."""
        return [self[sample_id] for sample_id in ids]
