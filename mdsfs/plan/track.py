"""One job on this host: the orders of its epochs that are known, one after the other, and how far its readers are.

A *key* is a position in all known epochs taken as one sequence: of two uses, the one with the smaller key comes first.
What a reader has read is past, batch by batch, also where the others have not come there yet; a reader that is too far
behind the fastest is not waited for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .calendar import UNKNOWN
from .epoch import Epoch, Uses, uses_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from .epoch import Stream
    from .shape import Shape

__all__ = ["Needs", "Prepared", "Track", "prepare", "shards_read"]

# From so many shards on one pass over all uses costs less than a look at each shard's own.
_MANY = 512
_NEVER = np.uint32(0xFFFFFFFF)


@dataclass(frozen=True, slots=True)
class Needs:
    """What one epoch needs of one dataset."""

    samples: int
    """Bytes of the distinct samples that are read, as shown (from the average of the dataset)."""
    shards: int
    """Bytes of the shards that they are in, as shown."""
    window: int
    """The live window: the most bytes of shards that are at once between their first and their last use."""


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """One epoch's order with what had to be computed from it."""

    epoch: Epoch
    uses: Mapping[int, Uses]
    needs: Mapping[int, Needs]


def prepare(order: NDArray[np.int64], streams: Mapping[int, Sequence[Stream]], shapes: Mapping[int, Shape]) -> Prepared:
    """Everything about an epoch that costs time: for a thread, some 0.1 s per million samples.

    order: int64 [ranks on this host][workers][batches][batch size]; streams: per dataset its parts of the job's ids.
    Raises ValueError for an order that is none.
    """
    epoch = Epoch(order)
    uses = {number: uses_of(epoch, its, shapes[number].first) for number, its in streams.items()}
    return Prepared(epoch, uses, {number: _needs(each, shapes[number]) for number, each in uses.items()})


def _needs(uses: Uses, shape: Shape) -> Needs:
    shards, first, last = uses.ends()
    sizes = shape.sizes[shards]
    places = np.concatenate([first, last + 1])
    changes = np.concatenate([sizes, -sizes])
    # At the same position what ends goes before what begins.
    ranked = np.lexsort((changes, places))
    window = int(np.cumsum(changes[ranked]).max()) if len(ranked) else 0
    return Needs(int(uses.distinct * shape.sample_bytes), int(sizes.sum()), window)


def shards_read(prepared: Prepared, dataset: int, shape: Shape, most: int = 1 << 20) -> NDArray[np.int64]:
    """int64 [uses]: the shards of the first samples that are read of a dataset, in the order of reading."""
    uses = prepared.uses[dataset]
    soon = np.flatnonzero(uses.at < most)
    return shape.shard_of(uses.samples[soon[np.argsort(uses.at[soon])]].astype(np.int64))


class Track:
    """The known epochs of a job and its readers in them."""

    def __init__(self) -> None:
        self.epochs: dict[int, Prepared] = {}
        """In ascending order."""
        self.bases: dict[int, int] = {}
        """Key of each known epoch's position 0."""
        self.end = 0
        """The key after the last position known."""
        self.drift = UNKNOWN
        """How many positions the slowest reader may be behind the fastest before it is not waited for any more."""
        self._done: dict[int, NDArray[np.int64]] = {}  # [ranks][workers]: the batch that each reads next
        self._front: int | None = None
        self._lead = 0

    def __repr__(self) -> str:
        return f"Track(epochs {list(self.epochs)}, at {self.front} of {self.end})"

    # ---- orders ------------------------------------------------------------------------------------------------------

    def add(self, number: int, prepared: Prepared) -> bool:
        """Another epoch is known. False when keys are other ones than before: it came before one that was known."""
        done = np.zeros((prepared.epoch.ranks, prepared.epoch.workers), np.int64)
        later = any(each >= number for each in self.epochs)
        if number in self._done and self._done[number].shape == done.shape:
            done = np.minimum(self._done[number], prepared.epoch.batches)
        self._done[number] = done
        self.epochs[number] = prepared
        self._front = None
        if later:
            self._number_anew()
            return False
        self.bases[number] = self.end
        self.end += prepared.epoch.positions
        return True

    def drop(self, number: int) -> None:
        """Nobody reads this epoch any more."""
        if number in self.epochs:
            del self.epochs[number], self.bases[number], self._done[number]
            self._front = None

    def _number_anew(self) -> None:
        self.epochs = dict(sorted(self.epochs.items()))
        self.bases, self.end = {}, 0
        for number, prepared in self.epochs.items():
            self.bases[number] = self.end
            self.end += prepared.epoch.positions

    # ---- readers -----------------------------------------------------------------------------------------------------

    def moved(self, rank: int, worker: int, number: int, batch: int) -> list[tuple[int, NDArray[np.int64]]] | None:
        """A reader reads this batch next: (epoch, slots) that are past now; None when it has gone back."""
        past: list[tuple[int, NDArray[np.int64]]] = []
        back = False
        for each, prepared in self.epochs.items():
            done, epoch = self._done[each], prepared.epoch
            if not (0 <= rank < epoch.ranks and 0 <= worker < epoch.workers):
                continue
            before = int(done[rank, worker])
            now = epoch.batches if each < number else min(max(batch, 0), epoch.batches) if each == number else 0
            if now == before:
                continue
            done[rank, worker] = now
            self._front = None
            if now < before:
                back = True
            else:
                past.append((each, (np.arange(before, now) * epoch.workers + worker) * epoch.ranks + rank))
        return None if back else past

    @property
    def front(self) -> int:
        """The smallest key that is not past."""
        if self._front is None:
            self._look()
        assert self._front is not None
        return self._front

    @property
    def lead(self) -> int:
        """The key at which the fastest reader is."""
        if self._front is None:
            self._look()
        return self._lead

    def _look(self) -> None:
        front, lead = self.end, min(self.bases.values(), default=self.end)
        for number, prepared in self.epochs.items():
            done, epoch, base = self._done[number], prepared.epoch, self.bases[number]
            if not done.size:
                continue
            ranks, workers = np.indices(done.shape)
            slots = (done * epoch.workers + workers) * epoch.ranks + ranks
            is_open = done < epoch.batches
            if is_open.any():
                front = min(front, base + int(slots[is_open].min()) * epoch.size)
            if done.any():
                lead = max(lead, base + min(int(slots[done > 0].max()), epoch.slots) * epoch.size)
        self._lead = max(lead, front)
        self._front = max(front, self._lead - self.drift)

    def place(self, key: int) -> tuple[int, int] | None:
        """(epoch, slot) of a key; None where no known epoch has it."""
        for number, base in self.bases.items():
            epoch = self.epochs[number].epoch
            if base <= key < base + epoch.positions:
                return number, (key - base) // epoch.size
        return None

    def positions(self, number: int) -> NDArray[np.int64]:
        """int64 [ranks][workers]: the batch that each reader of an epoch reads next."""
        return self._done[number]

    # ---- next uses ---------------------------------------------------------------------------------------------------

    def is_open(self, number: int, at: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether positions of an epoch are still to be read."""
        epoch, done = self.epochs[number].epoch, self._done[number]
        due = at >= self.front - self.bases[number]
        if done.size == 1:  # the front is where the only reader is
            return due
        ranks, workers, batches = epoch.reader_of(at // epoch.size)
        return (batches >= done[ranks, workers]) & due

    def next_of_samples(self, dataset: int, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Key of each sample's next use; `UNKNOWN` where the known epochs have none."""
        found = np.full(len(samples), UNKNOWN, np.int64)
        left = np.arange(len(samples))
        for number, prepared in self.epochs.items():
            uses = prepared.uses.get(dataset)
            if uses is None or not len(uses.samples):
                continue
            entries = np.searchsorted(uses.samples, samples[left].astype(np.uint32))
            which = left
            while len(which):
                inside = entries < len(uses.samples)
                inside[inside] = uses.samples[entries[inside]] == samples[which[inside]]
                entries, which = entries[inside], which[inside]
                at = uses.at[entries].astype(np.int64)
                is_open = self.is_open(number, at)
                found[which[is_open]] = self.bases[number] + at[is_open]
                entries, which = entries[~is_open] + 1, which[~is_open]
            left = left[found[left] == UNKNOWN]
            if not len(left):
                break
        return found

    def next_of_shards(self, dataset: int, shards: NDArray[np.int64]) -> NDArray[np.int64]:
        """Key of the next use of anything in each shard."""
        found = np.full(len(shards), UNKNOWN, np.int64)
        for number, prepared in self.epochs.items():
            left = np.flatnonzero(found == UNKNOWN)
            uses = prepared.uses.get(dataset)
            if uses is None or not len(left):
                continue
            if len(left) >= _MANY:
                firsts = self._open_firsts(number, uses)[shards[left]]
            else:
                firsts = np.array([self._open_first(number, uses, each) for each in shards[left].tolist()], np.uint32)
            known = firsts != _NEVER
            found[left[known]] = self.bases[number] + firsts[known].astype(np.int64)
        return found

    def _open_first(self, number: int, uses: Uses, shard: int) -> int:
        at = uses.of_shard(shard)
        at = at[self.is_open(number, at.astype(np.int64))]
        return int(at.min()) if len(at) else int(_NEVER)

    def _open_firsts(self, number: int, uses: Uses) -> NDArray[np.uint32]:
        firsts = np.full(len(uses.starts) - 1, _NEVER, np.uint32)
        touched = uses.touched
        if len(touched):
            at = np.where(self.is_open(number, uses.at.astype(np.int64)), uses.at, _NEVER)
            firsts[touched] = np.minimum.reduceat(at, uses.starts[touched])
        return firsts
