"""What a simulated run comes to, as values: for the table, the picture and the JSON of `mdsfs plan`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Bounds", "EpochOutcome", "Outcome", "Prices", "SizePoint", "Timeline"]


@dataclass(frozen=True, slots=True)
class Prices:
    """What a store asks for; in any currency."""

    per_gb: float = 0.0
    """For 10⁹ bytes that leave it."""
    per_1000_requests: float = 0.0

    def cost(self, size: float, requests: float) -> float:
        """Of so many bytes and requests."""
        return size / 1e9 * self.per_gb + requests / 1000 * self.per_1000_requests


@dataclass(frozen=True, slots=True, eq=False)
class Timeline:
    """Sums over an epoch, one entry a tick: float64 [ticks] each."""

    done: NDArray[np.float64]
    """Share of the epoch's batches that have been read, 0 to 1."""
    seconds: NDArray[np.float64]
    """Since the epoch's first batch was asked for."""
    stall: NDArray[np.float64]
    """Seconds."""
    bytes: NDArray[np.float64]
    """That have arrived from the store."""


@dataclass(frozen=True, slots=True)
class EpochOutcome:
    """One epoch on one host. Times in seconds, sizes in bytes."""

    number: int
    seconds: float
    first_batch: float
    """From asking for the first batch to having it."""
    stall: float
    """Waiting for batches, the first one left out."""
    worst_stall: float
    """The longest wait for one tick's batches, the first left out."""
    bytes: int
    """That arrived from the store."""
    requests: int
    evicted: int
    """Bytes that were dropped to make room."""
    least: int
    """max(0, U - C), of the first epoch U: what no policy can go below."""
    best: int
    """What Belady fetches, in the units of the plan (shards, or samples)."""
    cost: float
    timeline: Timeline = field(repr=False)


@dataclass(frozen=True, slots=True)
class SizePoint:
    """What a steady epoch fetches at one cache limit."""

    limit: int
    regime: str
    bytes: float
    shards: float
    """Bytes, were whole shards fetched whatever the cache holds."""
    least: float


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the order of one epoch needs on this host. Bytes as stored, unless they are of the cache."""

    distinct: int
    """U: of the samples that are read, each once."""
    touched: int
    """Of the shards that they are in."""
    delivered: int
    """Of the samples that are read, as often as they are."""
    window: int
    """The live window of whole shards, in the cache."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run on one host."""

    dataset: dict[str, Any]
    options: dict[str, Any]
    regime: str
    reason: str
    changes_at_bytes: int | None
    """The cache limit at which the other regime would be chosen; None where none would."""
    tables_bytes: int
    """Of the cache: index and tables, which leave so much less for data."""
    bounds: Bounds
    epochs: tuple[EpochOutcome, ...]
    peak_bytes: int
    """On disk, at any instant."""
    sizes: tuple[SizePoint, ...] = ()
    warnings: tuple[str, ...] = ()
    tick_batches: int = 1
    """Batches of a rank that were simulated together."""

    @property
    def steady(self) -> EpochOutcome:
        """The last epoch, which has one before it to find the cache filled by."""
        return self.epochs[-1]

    def to_json(self) -> dict[str, Any]:
        """Everything but the timelines."""
        found = asdict(self)
        for epoch in found["epochs"]:
            del epoch["timeline"]
        return found
