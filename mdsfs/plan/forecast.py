"""From a workload and a host to an outcome: the simulated epochs, the bounds beside them, and other cache sizes.

Everything is computed on the workload's share of the data and given out for all of it. A cache holds bytes as shown and
a store sends bytes as stored, so what a bound says about room is turned into stored bytes by the dataset's ratio.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from .bounds import MOST_USES, Belady, lower_bound, thin
from .modelled import in_flight
from .outcome import Bounds, EpochOutcome, Outcome, SizePoint, Timeline
from .regime import choose
from .simulate import simulate
from .track import Needs, prepare

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from numpy.typing import NDArray

    from .outcome import Prices
    from .simulate import Epoch, Host, Run
    from .workload import Workload

__all__ = ["forecast"]

# Points of a timeline: more than a picture has columns.
POINTS = 1000
# Cache sizes of the curve, and uses that one of them replays below the live window, where nothing is ever still there.
SIZES, SIZE_USES = 24, 40_000
# What blocks add to a range at both of its ends, on average.
EDGES = 4096


@dataclass(frozen=True, eq=False)
class _Bytes:
    """What the order needs, of the workload's share; bytes as shown."""

    workload: Workload
    orders: Sequence[NDArray[np.int64]]
    needs: Needs
    delivered: float

    @property
    def ratio(self) -> float:
        """Stored bytes per byte as shown."""
        shape = self.workload.shape
        return int(shape.stored.sum()) / max(int(shape.sizes.sum()), 1)

    def out(self, size: float) -> int:
        """Stored bytes of the whole workload."""
        return round(size * self.ratio / self.workload.share)

    def room(self, limit: int) -> int:
        """Bytes for data in a cache of this limit, of the share."""
        return max(int((limit - self.workload.stored.index) * self.workload.share), 0)

    def trace(self, epoch: int, regime: str) -> NDArray[np.int64]:
        """Units in the order of their uses: shards, a run of uses being one, or samples."""
        ids = self.orders[epoch].reshape(-1)
        ids = ids[ids >= 0]
        if regime != "shards":
            return ids
        shards = self.workload.shape.shard_of(ids)
        return shards[np.concatenate([[True], shards[1:] != shards[:-1]])] if len(shards) else shards

    def sizes(self, regime: str) -> NDArray[np.int64]:
        """Bytes of those units."""
        shape = self.workload.shape
        if regime == "shards":
            return shape.sizes
        counts = np.maximum(np.diff(shape.first), 1)
        return np.repeat(shape.sizes // counts, np.diff(shape.first))


def forecast(workload: Workload, host: Host, epochs: int, prices: Prices, said: dict[str, Any]) -> Outcome:
    """Simulate so many epochs on one host. `said`: what is to be repeated of the options."""
    thinned = workload.thinned()
    with warnings.catch_warnings(record=True) as said_by_order:
        warnings.simplefilter("always")
        read = [thinned.read(number) for number in range(epochs + 1)]
    orders = [order for order, _, _ in read]
    window = max(each for _, each, _ in read)
    # of what this host reads: of the dataset it is about as much
    thinned = replace(thinned, share=read[0][2] or 1.0)
    run = simulate(thinned, host, orders)
    known = _known(thinned, orders, window)
    best = _best(known, run, host, epochs)
    reason, changes_at = _why(known, run, host)
    shape = workload.shape
    dataset = {
        "shards": shape.shards,
        "samples": shape.samples,
        "bytes": int(shape.sizes.sum()),
        "stored_bytes": int(shape.stored.sum()),
        "form": "whole" if shape.whole.any() else "frames" if workload.stored.frame else "raw",
        "simulated_share": round(thinned.share, 6),
    }
    bounds = Bounds(
        distinct=known.out(known.needs.samples),
        touched=known.out(known.needs.shards),
        delivered=known.out(known.delivered),
        window=window,
    )
    return Outcome(
        dataset=dataset,
        options=said,
        regime=run.regime,
        reason=reason,
        changes_at_bytes=None if changes_at is None else changes_at + workload.stored.index,
        tables_bytes=workload.stored.index,
        bounds=bounds,
        epochs=tuple(_epoch(number, each, known, host, best[number], prices) for number, each in enumerate(run.epochs)),
        peak_bytes=int(run.peak),
        sizes=_curve(known, host, run),
        warnings=(
            *_warnings(workload, host, bounds),
            *dict.fromkeys(str(each.message) for each in said_by_order),
        ),
    )


def _why(known: _Bytes, run: Run, host: Host) -> tuple[str, int | None]:
    """The planner's reason, and the room at which it would choose otherwise, in bytes of the whole workload."""
    share = known.workload.share
    if share == 1.0 or run.changes_at is None:
        return run.reason, run.changes_at
    needs = Needs(*(int(each / share) for each in (known.needs.samples, known.needs.shards, known.needs.window)))
    ahead = max(run.changes_at - run.window, 0)
    found = choose({0: needs}, host.limit - known.workload.stored.index, ahead)[0]
    return (found.reason, found.changes_at_bytes) if found.kind == run.regime else (run.reason, run.changes_at)


def _known(workload: Workload, orders: Sequence[NDArray[np.int64]], window: int) -> _Bytes:
    streams = {0: [(0, 0, workload.shape.samples)]}
    found = prepare(orders[0][None, None], streams, {0: workload.shape}).needs[0]
    needs = replace(found, window=int(window * workload.share))
    delivered = int((orders[0] >= 0).sum()) * workload.shape.sample_bytes
    return _Bytes(workload, orders, needs, delivered)


def _epoch(number: int, epoch: Epoch, known: _Bytes, host: Host, best: int, prices: Prices) -> EpochOutcome:
    steps = len(epoch.stalls)
    at = np.unique(np.linspace(0, steps - 1, min(POINTS, steps)).astype(np.int64))
    timeline = Timeline(
        done=(at + 1) / max(steps, 1),
        seconds=epoch.times[at],
        stall=np.cumsum(epoch.stalls)[at],
        bytes=epoch.arrived[at],
    )
    return EpochOutcome(
        number=number,
        seconds=epoch.seconds,
        first_batch=float(epoch.stalls[0]) if steps else 0.0,
        stall=float(epoch.stalls[1:].sum()),
        worst_stall=float(epoch.stalls[1:].max(initial=0.0)),
        bytes=round(epoch.bytes),
        requests=round(epoch.requests),
        evicted=round(epoch.evicted),
        least=known.out(lower_bound(known.needs.samples, known.room(host.limit) if number else 0)),
        best=best,
        cost=prices.cost(epoch.bytes, epoch.requests),
        timeline=timeline,
    )


def _best(known: _Bytes, run: Run, host: Host, epochs: int) -> list[int]:
    """What Belady fetches in each epoch, in the units of the run's regime."""
    sizes, room = known.sizes(run.regime), known.room(host.limit)
    traces = [known.trace(number, run.regime) for number in range(epochs + 1)]
    share = 1.0
    if run.regime == "shards":
        traces = [_shorter(trace) for trace in traces]
    else:
        thinned = [thin(trace, sizes) for trace in traces]
        traces, share = [each.units for each in thinned], thinned[0].share
    cache = Belady(sizes, room * share)
    return [known.out(cache.epoch(traces[number], traces[number + 1]) / share) for number in range(epochs)]


def _shorter(trace: NDArray[np.int64]) -> NDArray[np.int64]:
    """A trace of shards that is too long to replay, without uses that follow another one soon: they find it here."""
    width = len(trace) // MOST_USES * 16
    if not width:
        return trace
    units = int(trace.max()) + 1
    return np.unique(np.arange(len(trace)) // width * units + trace) % units


def _curve(known: _Bytes, host: Host, run: Run) -> tuple[SizePoint, ...]:
    """A steady epoch at other cache limits, and on both sides of where the regime changes."""
    share, index = known.workload.share, known.workload.stored.index
    ahead = None if run.changes_at is None else max(run.changes_at - run.window, 0) * share
    knee = int(known.needs.window / share + (ahead or 0) / share) + index
    total = int(known.needs.shards / share) + index
    window = int(known.needs.window / share) + index
    chosen = [total * at / SIZES for at in range(1, SIZES + 3)]
    more = [total / 100, total / 50, window, window * 1.02, knee * 0.995, knee * 1.005, host.limit]
    limits = sorted({int(each) for each in [*chosen, *more]})
    trace = known.trace(1, "shards")
    return tuple(_point(known, host, limit, trace, ahead) for limit in limits if limit > index)


def _point(known: _Bytes, host: Host, limit: int, trace: NDArray[np.int64], ahead: float | None) -> SizePoint:
    room, needs, share = known.room(limit), known.needs, known.workload.share
    if ahead is None:
        ahead = in_flight(limit, host.bandwidth, host.latency) * share
    regime = choose({0: needs}, room, int(ahead))[0].kind
    least = lower_bound(needs.samples, room)
    fits = room >= needs.window
    shards = float(lower_bound(needs.shards, room)) if fits else _thrashed(known, room, trace)
    count = known.delivered / max(known.workload.shape.sample_bytes, 1.0)
    ranges = least * (1 + EDGES * count / max(known.delivered, 1.0))
    if known.workload.shape.whole.any():
        ranges = shards
    chosen = shards if regime == "shards" else ranges
    return SizePoint(limit, regime, known.out(chosen), known.out(shards), known.out(least))


def _thrashed(known: _Bytes, room: int, trace: NDArray[np.int64]) -> float:
    """Bytes of whole shards in a cache below the live window, from a stretch of the epoch."""
    stretch = trace[: 2 * SIZE_USES]
    half = len(stretch) // 2
    cache = Belady(known.sizes("shards"), room)
    cache.epoch(stretch[:half], stretch[half:])
    fetched = cache.epoch(stretch[half:], trace[len(stretch) : len(stretch) + half])
    return fetched * len(trace) / max(len(stretch) - half, 1)


def _warnings(workload: Workload, host: Host, bounds: Bounds) -> tuple[str, ...]:
    found = []
    if workload.shape.whole.any() and bounds.window > host.limit - workload.stored.index:
        found.append(
            "the objects can only be fetched whole (zstd in one frame), and the cache does not hold the live window: "
            "mdsfs repack makes them seekable"
        )
    if host.limit - workload.stored.index < 2 << 20:
        found.append(f"index and tables take {workload.stored.index} bytes: the limit leaves too little for data")
    return tuple(found)
