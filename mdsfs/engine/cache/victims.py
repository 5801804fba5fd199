"""What is on its way out of the cache: runs of blocks of a file, put together by file, and the punching of them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from streaming.engine.residency import BLOCK

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .dataset import Dataset, Run
    from .ledger import Chunk, FileKey

__all__ = ["Victim", "merged", "punch_all", "tell"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Victim:
    """Runs of resident blocks of one file on their way out, and the cells that they lie on."""

    dataset: Dataset
    file: int
    runs: list[Run]
    cells: tuple[Chunk, ...]

    @property
    def chunks(self) -> list[Chunk]:
        """The chunks that the runs lie on."""
        return list(dict.fromkeys(chunk for run in self.runs for chunk in self.dataset.chunks(self.file, *run)))

    @property
    def ranges(self) -> list[tuple[int, int, int, int]]:
        """Dataset, file, start and stop in bytes of each run."""
        number, file = self.dataset.number, self.file
        return [(number, file, first * BLOCK, (first + count) * BLOCK) for first, count in self.runs]

    @property
    def blocks(self) -> int:
        return sum(count for _, count in self.runs)


def merged(victims: list[Victim]) -> list[Victim]:
    """One victim a file: two could share a cell, and each block must be counted once."""
    found: dict[FileKey, list[Victim]] = {}
    for each in victims:
        found.setdefault((each.dataset.number, each.file), []).append(each)
    return [each[0] if len(each) == 1 else _joined(each) for each in found.values()]


def _joined(victims: list[Victim]) -> Victim:
    runs: list[Run] = []
    for first, count in sorted(run for each in victims for run in each.runs):
        end = runs[-1][0] + runs[-1][1] if runs else -1
        if first <= end:
            runs[-1] = runs[-1][0], max(end, first + count) - runs[-1][0]
        else:
            runs.append((first, count))
    cells = tuple(dict.fromkeys(cell for each in victims for cell in each.cells))
    return Victim(victims[0].dataset, victims[0].file, runs, cells)


def punch_all(victims: list[Victim]) -> list[bool]:
    """Per victim: whether its blocks are gone. In a thread."""
    return [_punch(victim) for victim in victims]


def tell(what: str, ranges: Iterable[tuple[int, int, int, int]]) -> None:
    """Say in the log what happens to these (dataset, file, start, stop in bytes): a line a dataset."""
    found: dict[int, list[tuple[int, int, int]]] = {}
    for number, file, start, stop in ranges:
        found.setdefault(number, []).append((file, start, stop))
    for number, own in found.items():
        text = ",".join(f"{file}:{start}-{stop}" for file, start, stop in own)
        log.info("%s dataset=%d bytes=%d ranges=%s", what, number, sum(stop - start for _, start, stop in own), text)


def _punch(victim: Victim) -> bool:
    runs = [(first * BLOCK, count * BLOCK) for first, count in victim.runs]
    try:
        return victim.dataset.folder.punch_runs(victim.file, runs)
    except OSError as error:
        log.error("cannot punch dataset=%d file=%d: %s", victim.dataset.number, victim.file, error)
        return False
