"""The planner run forward in virtual time: the engine's own decisions, a modelled link, and a reader that computes.

What is modelled: a link of a bandwidth and a latency, which carries one byte after the other, with so many bytes on
their way as keep it busy; requests, which cost a processor of the host a little each; a cache of a size, in which every
stretch of samples takes a block more than its bytes; a step, which begins when all samples of the host's batches are
here, and computes. What is not: disks, decompression, other users of the link, batches that a loader holds ready.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .modelled import Cache, Wire, in_flight, room
from .planner import Link, Planner
from .state import ABSENT, HERE
from .track import prepare

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from .planner import Fetch, Unit
    from .workload import Workload

__all__ = ["Epoch", "Host", "Run", "simulate"]

_DATASET, _JOB = 0, "run"
# Bytes of one request for a large range, as the engine's fetchers split them.
PART = 4 << 20
# Steps that may be looked at as one where all that they read is here.
GROUP = 16


@dataclass(frozen=True, slots=True)
class Host:
    """What a host has. Times in seconds, bandwidth in bytes per second."""

    limit: int
    """Of the cache, in bytes."""
    bandwidth: float
    latency: float
    step: float
    """Computing on a batch of each rank."""
    request: float = 0.0002
    """Of a processor, per request."""


@dataclass(frozen=True, slots=True, eq=False)
class Epoch:
    """One epoch as it went. The arrays have an entry a step, and count from the epoch's start; bytes as stored."""

    seconds: float
    stalls: NDArray[np.float64]
    """Seconds that each step was waited for."""
    times: NDArray[np.float64]
    """When each step's batches were there."""
    arrived: NDArray[np.float64]
    """Bytes that had come by then."""
    bytes: float
    requests: float
    evicted: float


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """All epochs, and what the planner said."""

    epochs: tuple[Epoch, ...]
    regime: str
    reason: str
    changes_at: int | None
    """Bytes of the cache at which the regime would be the other one, without index and tables."""
    window: int
    """The live window of the last epoch."""
    peak: float
    """Bytes in the cache at most, with index and tables."""


def simulate(workload: Workload, host: Host, orders: Sequence[NDArray[np.int64]]) -> Run:
    """Run all epochs but the last of `orders`, from an empty cache; the last is only known to follow.

    orders: as `Workload.order` gives them. The workload may be thinned: the result is as for all of it.
    """
    return _Simulation(workload, host, orders).run()


class _Simulation:
    """One run. All sizes are of the thinned workload until they are given out."""

    def __init__(self, workload: Workload, host: Host, orders: Sequence[NDArray[np.int64]]) -> None:
        share = workload.share
        self._orders = orders
        self._workload, self._host, self._shape = workload, host, workload.shape
        self._streams = {_DATASET: [(_DATASET, 0, workload.shape.samples)]}
        capacity = max(int(room(workload, host.limit) * share), 1)
        bandwidth, request = host.bandwidth * share, host.request / share
        self._planner = Planner(capacity, Link(bandwidth, host.latency, request))
        self._planner.add_dataset(_DATASET, self._shape)
        self._state = self._planner.dataset(_DATASET)
        self._wire = Wire(bandwidth, host.latency, request)
        self._cache = Cache(workload, capacity)
        self._budget = max(int(in_flight(host.limit, host.bandwidth, host.latency) * share), 1)
        self._now = 0.0
        self._coming: list[tuple[float, int, Fetch, float]] = []
        self._in_flight = 0.0
        self._due: NDArray[np.float64] = np.full(workload.shape.samples, np.inf)  # when what is on its way comes
        self._given = 0.0  # bytes that have gone, and of which the planner is yet to hear
        self._refill = self._budget / 2 / bandwidth
        self._satisfied = False  # the planner wants no more before readers move on
        self._flights: dict[int, float] = {}  # shards that come as a whole: when
        self._partly: dict[int, int] = {}  # bytes on their way of shards that come in parts
        self._count = 0
        self._bytes = self._requests = self._evicted = 0.0
        self._ratio = int(self._shape.stored.sum()) / max(int(self._shape.sizes.sum()), 1)

    def run(self) -> Run:
        """All epochs."""
        found = []
        self._add(0)
        for number in range(len(self._orders) - 1):
            found.append(self._epoch(number))
            self._planner.drop_epoch(_JOB, number)
        share = self._workload.share
        regime = self._state.regime
        at = regime.changes_at_bytes
        fixed = self._host.limit - room(self._workload, self._host.limit)
        peak = self._cache.peak / share + fixed
        return Run(
            tuple(found),
            regime.kind,
            regime.reason,
            None if at is None else int(at / share),
            int(self._window / share),
            min(peak, self._host.limit),
        )

    # ---- orders ------------------------------------------------------------------------------------------------------

    def _add(self, number: int) -> None:
        prepared = prepare(self._orders[number][None, None], self._streams, {_DATASET: self._shape})
        self._window = prepared.needs[_DATASET].window
        self._planner.add_epoch(_JOB, self._streams, number, prepared)

    # ---- time --------------------------------------------------------------------------------------------------------

    def _epoch(self, number: int) -> Epoch:
        order = self._orders[number]
        steps = len(order)
        began, before = self._now, (self._bytes, self._requests, self._evicted)
        stalls, times, arrived = np.zeros(steps), np.zeros(steps), np.zeros(steps)
        at = 0
        while at < steps:
            count = self._ready(order, at)
            asked = self._now
            if not count:
                self._wait(order[at])
                count = 1
            stalls[at] = self._now - asked
            times[at : at + count] = self._now - began + np.arange(count) * self._host.step
            arrived[at : at + count] = self._bytes - before[0]
            at += count
            self._planner.moved(_JOB, 0, 0, number, at)
            self._satisfied = False
            if at >= steps // 2 > at - count or (at == steps and steps < 2):
                self._add(number + 1)
            self._pass(count * self._host.step)
        share = self._workload.share
        totals = (now - then for now, then in zip((self._bytes, self._requests, self._evicted), before, strict=True))
        size, requests, evicted = (each / share for each in totals)
        return Epoch(self._now - began, stalls, times, arrived / share, size, requests, evicted)

    def _ready(self, order: NDArray[np.int64], at: int) -> int:
        """How many steps from here on find everything in the cache, up to a group of them."""
        rows = order[at : at + GROUP]
        here = (self._state.samples[rows] == HERE) | (rows < 0)
        missing = np.flatnonzero(~here.all(axis=1))
        return int(missing[0]) if len(missing) else len(rows)

    def _wait(self, row: NDArray[np.int64]) -> None:
        """Until all samples of a step have come."""
        ids = np.unique(row[row >= 0])
        while len(ids := ids[self._state.samples[ids] != HERE]):
            absent = int((self._state.samples[ids] == ABSENT).sum())
            if absent:
                self._ask(most=absent * self._shape.sample_bytes)
            if not self._coming:
                if self._planner.more:
                    continue
                self._pass_by(ids)
                return
            # what is on its way comes together; a head must come before what it leads to is asked for
            due = float(self._due[ids].max())
            self._land(due if np.isfinite(due) and due > self._now else self._coming[0][0])

    def _pass(self, seconds: float) -> None:
        """Compute, while bytes come."""
        until = self._now + seconds
        self._ask()
        while self._coming and self._coming[0][0] <= until:
            self._land(min(until, self._coming[0][0] + self._refill))
        self._now = until

    def _pass_by(self, ids: NDArray[np.int64]) -> None:
        """There is no room for these: they go past the cache."""
        for sample in ids.tolist():
            size = self._stored(int(self._shape.shard_of(np.array([sample]))[0]), 1, self._shape.sample_bytes)
            self._now = max(self._now, self._wire.send(self._now, size, 1))
            self._bytes += size
            self._requests += 1

    # ---- fetching ----------------------------------------------------------------------------------------------------

    def _ask(self, most: float = 0.0) -> None:
        """Have the link busy; `most`: bytes that are needed at once, whatever is on its way."""
        wanted = max(self._budget - self._in_flight, most)
        if (self._satisfied or wanted < self._budget / 2) and not most:
            return  # by lots: each costs the planner a look at what lies ahead
        before = self._in_flight
        victims: Iterator[Unit] | None = None
        taken: list[Unit] = []
        sent: list[Fetch] = []
        for fetch in self._planner.fetches(int(self._cache.free), int(wanted)):
            needed = fetch.kind != "head" and fetch.size > self._cache.free
            if victims is None and needed:
                victims = self._planner.victims()
            if needed and victims is not None and not self._makeroom(fetch, victims, taken):
                self._planner.ended(fetch, again=True)
                continue
            if fetch.kind != "head":  # for these there is room beside the data's
                self._cache.reserve(fetch.size)
            sent.append(fetch)
        self._give_up(taken)
        for fetch in sent:
            self._send(fetch)
        self._satisfied = self._in_flight - before < wanted / 2 and not self._planner.more

    def _makeroom(self, fetch: Fetch, victims: Iterator[Unit], taken: list[Unit]) -> bool:
        while self._cache.free < fetch.size:
            unit = next(victims, None)
            if unit is None or unit.distance <= fetch.distance:
                return False
            size = self._cache.drop(*self._samples_of(unit))
            self._evicted += size
            self._given += size
            taken.append(unit)
        return True

    def _give_up(self, units: list[Unit]) -> None:
        """Tell the planner of what has gone."""
        if not units:
            return
        samples = [np.arange(*self._samples_of(unit)) for unit in units if unit.sample is None]
        samples.append(np.array([unit.sample for unit in units if unit.sample is not None], np.int64))
        gone = np.concatenate(samples)
        self._planner.gone_all(_DATASET, gone, int(self._given))
        self._given = 0.0
        self._recount(gone)

    def _recount(self, samples: NDArray[np.int64]) -> None:
        """Tell the planner how much is here of the shards of these samples: of one all only if all of it is."""
        for shard in np.unique(self._shape.shard_of(samples)).tolist():
            first, stop = int(self._shape.first[shard]), int(self._shape.first[shard + 1])
            count = int(np.count_nonzero(self._state.samples[first:stop] == HERE))
            self._planner.holds(_DATASET, shard, int(self._shape.sizes[shard]) * count // max(stop - first, 1))

    def _samples_of(self, unit: Unit) -> tuple[int, int]:
        if unit.sample is not None:
            return unit.sample, unit.sample + 1
        return int(self._shape.first[unit.shard]), int(self._shape.first[unit.shard + 1])

    def _send(self, fetch: Fetch) -> None:
        shard = fetch.shard
        under_way = self._flights.get(shard)
        if fetch.kind == "samples" and under_way is not None:
            # all of the shard is on its way already: nothing is asked for twice
            size, requests, finish = 0.0, 0, under_way
        else:
            size = self._size(fetch)
            requests = max(int(-(-size // PART)), 1)
            finish = self._wire.send(self._now, size, requests)
        if fetch.kind == "shard":
            self._flights[shard] = finish
        elif fetch.kind == "samples":
            self._partly[shard] = self._partly.get(shard, 0) + fetch.size
        self._count += 1
        heapq.heappush(self._coming, (finish, self._count, fetch, size))
        if fetch.kind != "head":
            self._due[fetch.first : fetch.stop] = finish
        self._in_flight += size
        self._bytes += size
        self._requests += requests

    def _size(self, fetch: Fetch) -> float:
        """Bytes that must come for it."""
        if fetch.kind == "head":
            return float(fetch.size)
        if fetch.kind == "samples":
            return self._stored(fetch.shard, fetch.stop - fetch.first, fetch.size)
        stored, raw = int(self._shape.stored[fetch.shard]), int(self._shape.sizes[fetch.shard])
        if self._shape.whole[fetch.shard]:
            return float(stored)
        missing = raw - int(self._state.held[fetch.shard]) - self._partly.get(fetch.shard, 0)
        return stored * max(missing, 0) / max(raw, 1)

    def _stored(self, shard: int, count: int, size: float) -> float:
        """Bytes that must come for neighbours of one shard that take `size` in the cache."""
        frame = self._workload.stored.frame
        raw, stored = max(int(self._shape.sizes[shard]), 1), int(self._shape.stored[shard])
        each = raw / max(int(self._shape.first[shard + 1] - self._shape.first[shard]), 1)
        if not frame:
            # of the blocks at both ends only the samples' own part comes, but where whole shards are kept
            return min(size if self._state.by_shard[shard] else count * each, raw) * stored / raw
        # frames are cut between samples: both ends are in the middle of one, on average
        return min(count * each + max(frame - each, 0.0), raw) * stored / raw

    def _land(self, until: float) -> None:
        """All fetches that have come by then."""
        arrived: list[NDArray[np.int64]] = []
        over: list[Fetch] = []
        while self._coming and self._coming[0][0] <= until:
            finish, _, fetch, size = heapq.heappop(self._coming)
            self._now = max(self._now, finish)
            self._in_flight -= size
            if fetch.kind == "head":
                self._planner.head_arrived(_DATASET, fetch.shard)
                self._satisfied = False
            else:
                if fetch.kind == "shard":
                    del self._flights[fetch.shard]
                else:
                    self._partly[fetch.shard] -= fetch.size
                self._cache.fill(fetch.first, fetch.stop, fetch.size)
                arrived.append(np.arange(fetch.first, fetch.stop))
            over.append(fetch)
        if arrived:
            samples = np.unique(np.concatenate(arrived))
            self._planner.arrived_all(_DATASET, samples)
            self._recount(samples)
        for fetch in over:
            self._planner.ended(fetch, again=False)
        self._ask()
