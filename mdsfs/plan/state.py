"""What is in the cache of one dataset, and what is on its way, counted in samples and shards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from .regime import Regime

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .shape import Shape

__all__ = ["ABSENT", "HERE", "WANTED", "DatasetState", "Fetch", "Unit"]

ABSENT, WANTED, HERE = 0, 1, 2


class Fetch(NamedTuple):
    """Something to fetch. `head`: a shard's table of offsets; `samples`: samples first:stop; `shard`: all of it."""

    dataset: int
    shard: int
    kind: Literal["head", "samples", "shard"]
    first: int
    stop: int
    """Samples, counted within the dataset; of a whole shard and of a head: all of the shard's."""
    job: str
    key: int
    """Where in the job something of it is read first."""
    distance: int
    """How many samples the job reads before it."""
    size: int
    """Bytes that it takes in the cache, estimated."""
    near: bool
    """It is read soon: it may push out anything that is read later."""


class Unit(NamedTuple):
    """Something that may go: a sample (counted within the dataset), or a shard, as much of it as is needed."""

    dataset: int
    shard: int
    sample: int | None
    """None: the unit is the shard."""
    distance: int
    """How many samples its job reads before it; `calendar.UNKNOWN` for what no known epoch reads again."""


class DatasetState:
    """One dataset of the plan."""

    def __init__(self, number: int, shape: Shape) -> None:
        self.number, self.shape = number, shape
        self.regime = Regime("ranges", "no order is known yet", None)
        self.by_shard: NDArray[np.bool_] = shape.whole.copy()
        """bool [shards]: which are units of their own; of the others each sample is one."""
        self.samples: NDArray[np.uint8] = np.zeros(shape.samples, np.uint8)
        self.heads: NDArray[np.uint8] = np.zeros(shape.shards, np.uint8)
        self.held: NDArray[np.int64] = np.zeros(shape.shards, np.int64)
        """int64 [shards]: bytes that are here."""
        self.shards: NDArray[np.uint8] = np.zeros(shape.shards, np.uint8)
        """Of a shard only `ABSENT` or `WANTED` is said: whether all of it is on its way."""
        self.waiting: dict[int, list[tuple[str, int, int]]] = {}
        """Samples that can't be found before their shard's head is here: (job, key, sample)."""

    def __repr__(self) -> str:
        return f"DatasetState({self.number}, {self.regime.kind}, {int(self.held.sum())} bytes here)"

    def adopt(self, regime: Regime) -> bool:
        """Keep the dataset that way from now on; whether units are other ones than before."""
        changed = regime.kind != self.regime.kind
        self.regime = regime
        self.by_shard = self.shape.whole | (regime.kind == "shards")
        return changed

    def is_complete(self, shards: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether all of these shards is here."""
        return self.held[shards] >= self.shape.sizes[shards]
