"""A dataset as one connection has it open: which of its files lie on a local disk, and how its reads are widened."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from streaming.errors import ObjectMissingError, ShardCorruptError

from ..filling.wants import WantedRange
from ..filling.widen import SURE_WINDOW, Widener

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from ..cache.dataset import Dataset
    from ..engine import Engine

__all__ = ["Opened", "named"]

Range = tuple[int, int, int]


class Opened:
    """One open dataset."""

    def __init__(self, dataset: Dataset, local: Callable[[str], Path | None] | None, max_window: int) -> None:
        """`local`: the path of a key, for sources on a local disk."""
        self.dataset = dataset
        self.local = local
        sizes = dataset.tables.files["size"]
        self._widener = Widener(lambda file: int(sizes[file]) if 0 <= file < len(sizes) else None, max_window)

    def __repr__(self) -> str:
        return f"Opened({self.dataset.url})"

    def source_file(self, file: int) -> Path | None:
        """The source's own file where it can be handed out as it is: on a local disk, stored as it is shown."""
        dataset = self.dataset
        if self.local is None or dataset.shard_level or dataset.tables.compression(file) is not None:
            return None
        return self.local(dataset.tables.key(file))

    def open_source(self, file: int) -> int | None:
        """A descriptor of that file; None where there is none. Raises ObjectMissingError or ShardCorruptError."""
        if (path := self.source_file(file)) is None:
            return None
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ObjectMissingError(f"cannot open {path}: {error.strerror}") from error
        found, size = os.fstat(fd).st_size, self.dataset.size(file)
        if found != size:
            os.close(fd)
            raise ShardCorruptError(f"{path}: expected {size} bytes, got {found}")
        return fd

    def cached(self, ranges: Sequence[Range]) -> list[Range]:
        """(file, start, stop) of those of (file, offset, length) that the cache is for, ended with their files."""
        dataset = self.dataset
        return [
            (file, offset, min(offset + length, dataset.size(file)))
            for file, offset, length in ranges
            if length and offset < dataset.size(file) and self.source_file(file) is None
        ]

    def widened(
        self, engine: Engine, handle: int | None, wanted: Sequence[Range], *, samples: bool
    ) -> list[WantedRange]:
        """The ranges with what is to be fetched around them; what lies ahead is on its way from here."""
        found = []
        for file, start, stop in dict.fromkeys(wanted):
            around = (start, stop)
            if handle is not None:
                reach = self._widener.reach(handle, file, start, stop - start)
                planned = engine.planning.covers(self.dataset)
                around = around if planned else reach.demand[1:]
                if not planned or reach.window >= SURE_WINDOW:
                    engine.ahead.add(self.dataset, reach.ahead)
            found.append(WantedRange(file, start, stop, around, samples))
        return found


def named(dataset: Dataset, wanted: Sequence[WantedRange]) -> str:
    """Ranges as an error names them."""
    first = wanted[0]
    more = f" and {len(wanted) - 1} more ranges" if len(wanted) > 1 else ""
    return f"{dataset.tables.name(first.file)} {first.start}-{first.stop}{more}"
