"""An order that a program makes itself, told to the engines: ids in the order in which they will be read by index.

For samplers, and for programs that call `load_batch` or index the dataset. Where the program is in it, is seen from
what it reads; DataLoader workers, each of which reads some of the batches, are seen as well.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from streaming.engine.hint import LARGEST, Hint, HintedStream, HintWorld
from streaming.errors import StreamingError
from streaming.hinting import INTERVAL, engines_of
from streaming.mds.tables import check_ids

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from streaming.reader import Shards

__all__ = ["PublishedOrder", "checked_ids"]

# How far ahead a sample is looked for that is not the next one: other workers read the batches between.
WINDOW = 1 << 16


class PublishedOrder:
    """Ids as they will be read. Made by `StreamingDataset.publish_order`; ends with `close`, or its with block."""

    def __init__(self, name: str, parts: Sequence[Shards], ids: NDArray[np.int64], batch_size: int, epoch: int) -> None:
        count = -(-len(ids) // batch_size)
        whole = np.full(count * batch_size, -1, np.int64)
        whole[: len(ids)] = ids
        self._epoch = epoch
        self._batch_size = batch_size
        self._ids = whole
        self._sizes = [part.tables.shards["samples"].astype(np.int64) for part in parts]
        self._name = name
        self._at = 0
        self._due = 0.0
        self._told_by = 0  # the process that has hinted, which a fork changes
        self.closed = False
        self.attach(parts)

    def __repr__(self) -> str:
        return f"PublishedOrder({len(self._ids)} ids, next {self._at})"

    def attach(self, parts: Sequence[Shards]) -> None:
        """Tell the engines of these streams; nobody is waited for."""
        self._engines = engines_of(parts)
        self._samples = sum(part.samples for part in parts)
        self._tell([])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_engines"} | {"_told_by": 0}

    def _tell(self, places: list[tuple[int, int, int]]) -> None:
        """Hint anew, from this process."""
        self._told_by = os.getpid()
        streams = tuple(HintedStream(int(sizes.sum()), 1.0, sizes=sizes) for sizes in self._sizes)
        ids = self._ids.reshape(1, 1, -1, self._batch_size)
        hint = Hint(f"{self._name} ids", streams, HintWorld(), ids=ids)
        for engine in self._engines:
            try:
                engine.hint(hint, self._epoch, 0, places)
            except StreamingError:
                engine.forget()

    def tracked(self, read: Callable[[int], Any]) -> Callable[[int], Any]:
        """A reader of samples that is followed."""
        ids = self._ids.data
        size, last = self._batch_size, len(ids) - 1

        def read_and_follow(sample_id: int) -> Any:
            at = self._at
            if ids[at] == sample_id:
                self._at = min(at + 1, last)
            elif (found := self._find(sample_id)) is not None:
                at = found
            if not at % size:
                self._position(at)
            return read(sample_id)

        return read_and_follow

    def follow(self, ids: NDArray[np.int64]) -> None:
        """These are read, at once."""
        if len(ids) and (at := self._find(int(ids[0]))) is not None:
            self._position(at)
            self._at = min(at + len(ids), len(self._ids) - 1)

    def moved(self, samples: int) -> None:
        """So many of the ids are read: for programs of which the reads can't be seen from this process."""
        self._at = min(max(samples, 0), len(self._ids) - 1)
        self._due = 0.0
        self._position(samples)

    def _find(self, sample_id: int) -> int | None:
        """Where an id comes next, behind which it goes on; None for one that was not planned."""
        found = np.flatnonzero(self._ids[self._at : self._at + WINDOW] == sample_id)
        if not len(found):
            return None
        at = self._at + int(found[0])
        self._at = min(at + 1, len(self._ids) - 1)
        return at

    def _position(self, at: int) -> None:
        now = time.monotonic()
        if now < self._due or self.closed:
            return
        self._due = now + INTERVAL
        places = [(0, 0, at // self._batch_size)]
        if self._told_by != os.getpid():  # a worker that was forked from the one who has published
            self._tell(places)
            return
        for engine in self._engines:
            if not engine.position(self._epoch, places):
                self._tell(places)
                return

    def close(self) -> None:
        """Nothing more is read in this order."""
        if not self.closed:
            self.closed = True
            for engine in self._engines:
                engine.retract()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def checked_ids(ids: Any, samples: int) -> NDArray[np.int64]:
    """Ids as one row. Raises IndexError for one that is no sample's, ValueError where there are none, or too many."""
    found = np.array(ids, np.int64).reshape(-1)
    if not 0 < len(found) < LARGEST:
        raise ValueError(f"expected 1 to {LARGEST} ids, got {len(found)}")
    check_ids(found, samples)
    return found
