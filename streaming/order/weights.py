"""How many samples an epoch draws from each stream, from proportions, repeats or counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Drawn", "Weight", "weigh"]


@dataclass(frozen=True)
class Weight:
    """A stream's weight as its user gave it: at most one of the three."""

    proportion: float | None = None
    repeat: float | None = None
    choose: int | None = None


@dataclass(frozen=True)
class Drawn:
    """What the weights come to, one entry a stream, and the size of the epoch."""

    proportion: NDArray[np.float64]
    repeat: NDArray[np.float64]
    choose: NDArray[np.int64]
    epoch_size: int


def weigh(weights: Sequence[Weight], samples: NDArray[np.int64], epoch_size: int | None, seed: int) -> Drawn:
    """Derive every stream's count: relatively (all proportions, or none given but an epoch size), else absolutely."""
    relative = _is_relative(weights)
    unspecified = all(weight == Weight() for weight in weights)
    if not relative and not (unspecified and epoch_size):
        if epoch_size:
            raise ValueError("epoch_size goes with proportions only: leave it out, or give every stream a proportion")
        choose = np.array([_absolute(weight, int(n)) for weight, n in zip(weights, samples, strict=True)], np.int64)
        if not choose.any():
            raise ValueError("an epoch draws no sample at all: increase repeat or choose")
        return Drawn(choose / choose.sum(), choose / samples, choose, int(choose.sum()))
    total = int(epoch_size or samples.sum())
    share = np.array([weight.proportion for weight in weights] if relative else samples, np.float64)
    share /= share.sum()
    choose = (total * share).astype(np.int64)
    short = int(total - choose.sum())
    choose[np.random.default_rng(seed).choice(len(weights), short, replace=False)] += 1
    return Drawn(share, choose / samples, choose, total)


def _absolute(weight: Weight, samples: int) -> int:
    if weight.repeat is not None:
        return int(weight.repeat * samples)
    return samples if weight.choose is None else weight.choose


def _is_relative(weights: Sequence[Weight]) -> bool:
    relative = weights[0].proportion is not None
    for number, weight in enumerate(weights):
        given = [value is not None for value in (weight.proportion, weight.repeat, weight.choose)]
        if sum(given) > 1:
            raise ValueError(f"stream {number}: give at most one of `proportion`, `repeat` and `choose`")
        if given[0] != relative:
            raise ValueError(f"stream {number}: `proportion` must be given for every stream or for none")
    return relative
