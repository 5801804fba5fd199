"""`LocalDataset`: a dataset in a local or mounted folder, indexed by sample."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streaming.array import Array
from streaming.reader import Shards
from streaming.sources import open_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streaming.compatibility.shards import Reader
    from streaming.mixing import Mix
    from streaming.order.spanner import Spanner

__all__ = ["LocalDataset"]


class LocalDataset(Array):
    """The samples of a dataset in a folder: on a local disk, or mounted with mdsfs.

    Args:
        local: The folder.
        split: Sub-folder of it that holds the dataset.
        zero_copy: Give values of `bytes` columns as memoryviews and arrays as views of the mapped shard where that is
            possible. While such a value exists its shard stays mapped, and in the engine's cache that it is in.

    Raises:
        ObjectMissingError: there is no index.json.
        IndexFormatError: it is not a valid index.
    """

    def __init__(self, local: str | os.PathLike[str], split: str | None = None, *, zero_copy: bool = False) -> None:
        self.local = os.fspath(local)
        self.split = split or ""
        self.zero_copy = zero_copy
        self._open()

    def _open(self) -> None:
        self._shards = Shards(open_folder(Path(self.local, self.split)), views=self.zero_copy)
        self._read = self._shards.reader()
        self._mix: Mix | None = None
        self.num_samples = self._shards.samples

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_shards", "_read", "_mix")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        """Samples in the dataset."""
        return self.num_samples

    @property
    def size(self) -> int:
        """Samples in the dataset."""
        return self.num_samples

    def get_item(self, sample_id: int) -> dict[str, Any]:
        """One sample: column name to value. The hook to override for a transform."""
        return self._read(sample_id)

    def load_batch(
        self, ids: Any, columns: Sequence[str] | None = None, out: dict[str, Any] | None = None, *, views: bool = False
    ) -> dict[str, Any]:
        """Samples column by column. See `streaming.gather.load_batch`."""
        return self._whole().load_batch(ids, columns, out, views=views)

    @property
    def shards(self) -> Sequence[Reader]:
        """The shards: a sequence of `streaming.base.format.Reader`."""
        return self._whole().shards

    @property
    def spanner(self) -> Spanner:
        """From sample id to (shard, place in it)."""
        return self._whole().spanner

    def _whole(self) -> Mix:
        if self._mix is None:
            from streaming.mixing import Mix  # what indexing alone does not need

            self._mix = Mix.over([self._shards], [(self.local, self.split)])
        return self._mix

    def __getitem__(self, at: Any) -> Any:
        if type(at) is int and 0 <= at < self.num_samples:  # by far the most frequent, and not worth a second look
            return self.get_item(at)
        return super().__getitem__(at)
