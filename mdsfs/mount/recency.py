"""What was read without asking, remembered until the engine is told: it would take it for unused and evict it."""

from __future__ import annotations

import trio

__all__ = ["Touched"]

# Told as (file, piece of 1 MiB), at most this many of a dataset beside one request.
GRAIN = 1 << 20
LIMIT = 256


class Touched:
    """The pieces of each dataset that were read since they were last taken; the oldest are forgotten first."""

    def __init__(self) -> None:
        self._pieces: dict[int, dict[tuple[int, int], None]] = {}
        self._something = trio.Event()

    def add(self, dataset: int, row: int, offset: int) -> None:
        """A read at this offset was answered from the cache file."""
        pieces = self._pieces.setdefault(dataset, {})
        pieces[row, offset // GRAIN] = None
        if len(pieces) > LIMIT:
            del pieces[next(iter(pieces))]
        self._something.set()

    def take(self, dataset: int) -> list[list[int]]:
        """What there is of one dataset, as the protocol wants it."""
        return [[row, piece * GRAIN] for row, piece in self._pieces.pop(dataset, {})]

    def take_all(self) -> list[tuple[int, list[list[int]]]]:
        """What there is of every dataset."""
        self._something = trio.Event()
        return [(dataset, self.take(dataset)) for dataset in list(self._pieces)]

    def clear(self) -> None:
        """Forget everything: whoever should hear of it is gone."""
        self._pieces.clear()

    async def wait(self) -> None:
        """Until something was read."""
        await self._something.wait()
