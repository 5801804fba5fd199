"""How many samples an epoch draws from each shard, and which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

__all__ = ["Draw", "get_sampling", "resample"]


def get_sampling(
    samples_per_shard: NDArray[np.int64], choose: int, granularity: int, seed: int, epoch: int, use_epoch: bool
) -> NDArray[np.int64]:
    """How many of `choose` samples come from each shard: whole repeats, and the rest in granules picked at random."""
    for name, value, least in (
        ("choose", choose, 0),
        ("granularity", granularity, 1),
        ("seed", seed, 0),
        ("epoch", epoch, 0),
    ):
        if value < least:
            raise ValueError(f"`{name}` must be at least {least}, not {value}")
    total = int(samples_per_shard.sum())
    if choose % total == 0:
        return samples_per_shard * (choose // total)
    picks = (samples_per_shard + granularity - 1) // granularity
    worth = np.full(int(picks.sum()), granularity, np.int64)
    worth[np.cumsum(picks) - 1] = samples_per_shard - (picks - 1) * granularity
    order = np.random.default_rng(seed + epoch if use_epoch else seed).permutation(len(worth))
    left = choose % total
    reached = np.cumsum(worth[order])
    last = int(np.searchsorted(reached, left))  # the pick that completes the number, perhaps not taken whole
    taken = worth[order[: last + 1]]
    taken[-1] -= int(reached[last]) - left
    shards = np.repeat(np.arange(len(picks)), picks)[order[: last + 1]]
    chosen = samples_per_shard * (choose // total)
    np.add.at(chosen, shards, taken)
    return chosen


@dataclass(frozen=True)
class Draw:
    """What an epoch draws: `units` to shuffle by, and the sample id behind each drawn position.

    `ids` is None where they run on from `first`: the usual epoch, every sample once, needs no table of it.
    """

    units: NDArray[np.int64]
    ids: NDArray[np.int64] | None
    first: int = 0

    @property
    def size(self) -> int:
        return int(self.units.sum())

    def lookup(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Ids of `positions`; -1 stays -1."""
        if self.ids is not None:
            return gather(self.ids, positions)
        return np.where(positions == -1, -1, positions + self.first) if self.first else positions


def gather(table: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """`table[positions]`, where -1 (no sample) stays -1."""
    found = table[positions]
    found[positions == -1] = -1
    return found


def resample(parts: Iterable[tuple[NDArray[np.int64], NDArray[np.int64], int]], rng: np.random.Generator) -> Draw:
    """The draw of streams, each `(shard sizes, drawn of each shard, id of its first sample)`, from one generator."""
    units, starts, partial_sizes = [], [], []
    for sizes, counts, first in parts:
        whole, rest = np.divmod(counts, np.maximum(sizes, 1))
        entries = whole + (rest > 0)
        at = np.repeat(first + np.cumsum(sizes) - sizes, entries)
        of = np.repeat(sizes, entries)
        length = of.copy()
        is_partial = np.flatnonzero(rest)
        length[np.cumsum(entries)[is_partial] - 1] = rest[is_partial]
        units.append(length)
        starts.append(at)
        partial_sizes.append(np.where(length < of, of, 0))
    lengths, begins, drawn_from = (np.concatenate(lists).astype(np.int64) for lists in (units, starts, partial_sizes))
    if not len(lengths):
        raise ValueError("an epoch draws no sample from a stream: increase its proportion, repeat or choose")
    ends = np.cumsum(lengths)
    partial = np.flatnonzero(drawn_from)
    first = int(begins[0])
    if not len(partial) and np.array_equal(begins - first, ends - lengths):
        return Draw(lengths, None, first)
    ids = np.arange(int(ends[-1]), dtype=np.int64)
    ids += np.repeat(begins - (ends - lengths), lengths)
    for unit in partial:
        chosen = rng.choice(int(drawn_from[unit]), int(lengths[unit]), replace=False)
        chosen.sort()
        ids[ends[unit] - lengths[unit] : ends[unit]] = chosen + begins[unit]
    return Draw(lengths, ids)
