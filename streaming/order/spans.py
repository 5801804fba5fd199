"""Runs of consecutive ids (spans), their fixed scattering over canonical nodes, and their order of an epoch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["Spans", "grouped"]


@dataclass(frozen=True)
class Spans:
    """Spans [begin, begin + size)."""

    begins: NDArray[np.int64]
    sizes: NDArray[np.int64]

    @property
    def total(self) -> int:
        return int(self.sizes.sum())

    def shuffled(self, rng: np.random.Generator) -> Spans:
        """The spans in a random order: an array of numbers draws exactly what the list of spans would."""
        order = np.arange(len(self.sizes))
        rng.shuffle(order)
        return Spans(self.begins[order], self.sizes[order])

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self.begins.tolist(), self.sizes.tolist(), strict=True)

    def split(self, parts: int) -> list[Spans]:
        """Cut into `parts` at equal numbers of samples, through a span where need be: its first ids go first.

        An empty span stays, with the part whose end it meets; no cut makes one.
        """
        ends = np.cumsum(self.sizes)
        total = int(ends[-1]) if len(ends) else 0
        groups = []
        at, offset = 0, 0  # the next span, and how much of it is used
        for part in range(parts):
            stop = total * (part + 1) // parts
            whole = int(np.searchsorted(ends, stop, side="right"))  # spans that end by `stop`
            begun = stop - (int(ends[whole - 1]) if whole else 0)  # samples of the next one before `stop`
            cut = begun > (offset if whole == at else 0)
            begins, sizes = self.begins[at : whole + cut].copy(), self.sizes[at : whole + cut].copy()
            if cut:
                sizes[-1] = begun
            if len(sizes) and offset:
                begins[0] += offset
                sizes[0] -= offset
            groups.append(Spans(begins, sizes))
            if cut or whole > at:
                at, offset = whole, begun
        return groups


def grouped(sizes: NDArray[np.int64], groups: int, seed: int, epoch: int) -> tuple[list[Spans], np.random.Generator]:
    """Each canonical node's spans, in this epoch's order, and the epoch's generator, which has drawn that far.

    Which spans a node gets depends on the seed alone, so that a node reads the same shards every epoch.
    """
    sizes = np.asarray(sizes, np.int64)
    spans = Spans(np.cumsum(sizes) - sizes, sizes).shuffled(np.random.default_rng(seed))
    rng = np.random.default_rng(seed + epoch)
    return [group.shuffled(rng) for group in spans.split(groups)], rng
