"""The plan: what to fetch next, and what may go for it. Pure: it is told what happens and asked what to do.

Everything follows from next uses. What comes is fetched in the order in which it is read; what goes is what is read
last of all, and never anything that is read sooner than what comes. What is read soon (*near*) may push out anything
that is read later. What is read later than that (*far*) is fetched into free room, and in exchange for what an epoch
has to give up anyway: of a cache that holds a share c of what an epoch reads, a share 1 - c of what was read. More
would be fetched too early, at the cost of bytes that the next epoch could have found here.

The same object plans for the engine and for the simulation. Datasets are numbers, jobs are names, both the caller's;
shards and samples are counted within their dataset. Every call costs what it changes, not what the dataset holds.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

import numpy as np

from . import calendar
from .calendar import UNKNOWN, Calendar
from .job import JobState, PlannedJob
from .link import Link
from .lookahead import Lot, Namer, look
from .regime import choose
from .state import ABSENT, HERE, WANTED, DatasetState, Fetch, Unit
from .track import Needs, Track

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from .epoch import Stream
    from .shape import Shape
    from .track import Prepared

__all__ = ["Fetch", "JobState", "Link", "Planner", "Unit"]

# Of the capacity, what is read soon may take so much at most.
NEAR_SHARE = 4
# ... and, but for two batches of each reader, of what an epoch reads.
NEAR_PART = 0.02
# The slowest reader of a job is waited for until what lies between it and the fastest takes so much of the capacity.
DRIFT_SHARE = 4
# Buckets of the calendars per epoch. To look at a few hundred entries costs no more than to look at one: where a bucket
# would span less, there are fewer of them.
BUCKETS, LEAST_BUCKETS = 2048, 16
WIDE_ENOUGH = 512
# A stretch of an order within which neighbours are fetched together brings so much of the capacity at most.
LOT_SHARE = 64
# Stretches of orders that one call of `fetches` looks at: a few milliseconds.
LOTS = 16


class Planner:
    """One cache's plan. `capacity`: bytes that it has for data."""

    def __init__(self, capacity: int, link: Link | None = None) -> None:
        self.link = link or Link()
        self.capacity = capacity
        self._datasets: dict[int, DatasetState] = {}
        self._jobs: dict[str, PlannedJob] = {}
        self._share = 1.0  # of what an epoch of all jobs reads, what the cache can hold
        self._evicted = 0.0
        self.more = False
        """Whether the last call of `fetches` has left something to look at."""
        self.crowded = False
        """Whether it has left something for want of room."""
        self.furthest = UNKNOWN
        """How many samples are read before what would have gone first for it; `UNKNOWN` where nothing had to go."""
        self.turn = 0
        """Counts what changes next uses: readers that move, orders and datasets that come and go."""

    def __repr__(self) -> str:
        return f"Planner({len(self._jobs)} jobs, {len(self._datasets)} datasets, capacity {self.capacity})"

    # ---- datasets and jobs -------------------------------------------------------------------------------------------

    def add_dataset(self, number: int, shape: Shape) -> None:
        """A dataset that jobs will read; nothing of it is here as far as the plan knows."""
        self._datasets[number] = DatasetState(number, shape)
        self.turn += 1

    def remove_dataset(self, number: int) -> None:
        """No job reads it any more."""
        self._datasets.pop(number, None)
        self.turn += 1

    def covers(self, number: int) -> bool:
        """Whether a job with a known order reads this dataset."""
        return any(number in job.streams and job.track.epochs for job in self._jobs.values())

    def dataset(self, number: int) -> DatasetState:
        """What is known to be here of a dataset."""
        return self._datasets[number]

    def add_epoch(self, job: str, streams: Mapping[int, Sequence[Stream]], number: int, prepared: Prepared) -> set[int]:
        """Another epoch of a job is known, of a new job maybe; streams: per dataset its parts of the job's ids.

        The result are datasets that are kept in another way from now on: `hear_of_all` must tell what is here of them.
        """
        known = self._jobs.get(job)
        if known is None:
            known = self._jobs[job] = PlannedJob(job, Track(), streams)
        if not known.track.add(number, prepared):
            known.calendars.clear()
            known.restart()
        if not known.calendars:
            self._list_all(known)
        return self.decide()

    def drop_epoch(self, job: str, number: int) -> None:
        """An epoch that nobody reads any more."""
        if job in self._jobs:
            self._settle()
            self._jobs[job].track.drop(number)

    def remove_job(self, job: str) -> set[int]:
        """Its last reader has gone. The result is as for `add_epoch`."""
        self._settle()
        self._jobs.pop(job, None)
        return self.decide()

    def decide(self) -> set[int]:
        """Choose again between shards and ranges, after the capacity has changed. The result is as for `add_epoch`."""
        self._settle()
        needs = self._needs()
        total = 0
        changed: set[int] = set()
        regimes = {number: self._datasets[number].regime for number in needs}
        for number, regime in choose(needs, self.capacity, self._near_bytes(), regimes).items():
            total += needs[number].shards if regime.kind == "shards" else needs[number].samples
            if self._datasets[number].adopt(regime):
                changed.add(number)
        self._share = min(self.capacity / total, 1.0) if total else 1.0
        for job in self._jobs.values():
            if job.epoch is not None:
                each = self._position_bytes(job)
                job.track.drift = max(int(self.capacity / DRIFT_SHARE / each), self._row(job))
            if changed:
                job.calendars.clear()
                self._list_all(job)
                job.near = job.far = job.track.front
        return changed

    def _needs(self) -> dict[int, Needs]:
        found: dict[int, Needs] = {}
        for job in self._jobs.values():
            for number, need in job.epoch.needs.items() if job.epoch else ():
                other = found.get(number, Needs(0, 0, 0))
                # Jobs that read the same dataset are at different places of it, at worst.
                found[number] = Needs(
                    max(need.samples, other.samples), max(need.shards, other.shards), need.window + other.window
                )
        for number, need in found.items():
            size = int(self._datasets[number].shape.sizes.sum())
            found[number] = Needs(need.samples, need.shards, min(need.window, size))
        return found

    def _list_all(self, job: PlannedJob) -> None:
        """Put everything that is here into a new job's calendars; where it belongs turns out when it is looked at."""
        for number in job.streams:
            state = self._datasets[number]
            kept = state.samples == HERE
            kept &= ~np.repeat(state.by_shard, np.diff(state.shape.first))
            for units, by_shard in ((np.flatnonzero(kept), False), (np.flatnonzero(state.held * state.by_shard), True)):
                self._calendar(job, number, by_shard=by_shard).put(units, np.full(len(units), UNKNOWN, np.int64))

    def _calendar(self, job: PlannedJob, number: int, *, by_shard: bool) -> Calendar:
        found = job.calendars.get((number, by_shard))
        if found is None:
            epoch = job.epoch
            width = _width(epoch.epoch.positions, epoch.epoch.size) if epoch else 1
            found = job.calendars[number, by_shard] = Calendar(width)
        return found

    # ---- what happens ------------------------------------------------------------------------------------------------

    def moved(self, job: str, rank: int, worker: int, epoch: int, batch: int) -> None:
        """A reader reads this batch next."""
        known = self._jobs.get(job)
        if known is None:
            return
        self.turn += 1
        before = known.track.front
        if known.track.moved(rank, worker, epoch, batch) is None or known.track.front < before:
            known.restart()
        known.stuck = False
        front = known.track.front
        for (number, by_shard), each in known.calendars.items():
            each.pass_by(front, self._current(known, number, by_shard=by_shard))

    def arrived(self, number: int, first: int, stop: int) -> None:
        """Samples first:stop, counted within the dataset, are here."""
        self.arrived_all(number, np.arange(first, stop))

    def arrived_all(self, number: int, samples: NDArray[np.int64]) -> None:
        """All of these samples, each named once, are here: int64 [n], counted within the dataset."""
        state = self._datasets[number]
        fresh = samples[state.samples[samples] != HERE]
        state.samples[fresh] = HERE
        fresh = fresh[~state.by_shard[state.shape.shard_of(fresh)]]
        for job in self._readers(number):
            self._calendar(job, number, by_shard=False).put(fresh, job.track.next_of_samples(number, fresh))

    def holds(self, number: int, shard: int, held: int) -> None:
        """So many bytes of a shard are here."""
        state = self._datasets[number]
        before, state.held[shard] = state.held[shard], held
        if state.by_shard[shard] and held and not before:
            unit = np.array([shard], np.int64)
            for job in self._readers(number):
                self._calendar(job, number, by_shard=True).put(unit, job.track.next_of_shards(number, unit))

    def gone(self, number: int, first: int, stop: int, size: int) -> None:
        """Samples first:stop are not here any more, wholly or in part; `size` bytes were given up with them."""
        self.gone_all(number, np.arange(first, stop), size)

    def gone_all(self, number: int, samples: NDArray[np.int64], size: int) -> None:
        """The same of any samples, each named once: int64 [n], counted within the dataset."""
        self._evicted += size
        state = self._datasets[number]
        lost = samples[state.samples[samples] == HERE]
        state.samples[lost] = ABSENT
        self._miss(number, lost)

    def head_arrived(self, number: int, shard: int) -> None:
        """The table of offsets of a shard is here, and stays."""
        state = self._datasets[number]
        state.heads[shard] = HERE
        for name, key, sample in self._let_go(state, shard):
            if (job := self._jobs.get(name)) is not None:
                heapq.heappush(job.missed, (key, number, sample))

    def head_gone(self, number: int, shard: int) -> None:
        """The table of offsets of a shard is not here any more."""
        state = self._datasets[number]
        if state.heads[shard] == HERE:
            state.heads[shard] = ABSENT

    def ended(self, fetch: Fetch, *, again: bool) -> None:
        """What was to be fetched is over. What of it has not arrived is asked for again later if `again`: no room."""
        state = self._datasets.get(fetch.dataset)
        if state is None:
            return
        if again and (job := self._jobs.get(fetch.job)) is not None:
            job.stuck = True
        if fetch.kind == "head":
            if state.heads[fetch.shard] == WANTED:
                state.heads[fetch.shard] = ABSENT
                self._let_go(state, fetch.shard)
            return
        if fetch.kind == "shard":
            state.shards[fetch.shard] = ABSENT
            if again and not state.is_complete(np.array([fetch.shard]))[0] and (job := self._jobs.get(fetch.job)):
                job.far = min(job.far, fetch.key)
            return
        wanted = np.flatnonzero(state.samples[fetch.first : fetch.stop] == WANTED) + fetch.first
        state.samples[wanted] = ABSENT
        if again:
            self._miss(fetch.dataset, wanted)

    def _let_go(self, state: DatasetState, shard: int) -> list[tuple[str, int, int]]:
        """The samples that have waited for a head and still wait."""
        found = [each for each in state.waiting.pop(shard, ()) if state.samples[each[2]] == WANTED]
        state.samples[[sample for _, _, sample in found]] = ABSENT
        return found

    def _miss(self, number: int, samples: NDArray[np.int64]) -> None:
        """What of these was asked for, and is not here, is to be asked for again."""
        state = self._datasets[number]
        if not len(samples):
            return
        whole = state.by_shard[state.shape.shard_of(samples)]
        for job in self._readers(number):
            keys = job.track.next_of_samples(number, samples)
            if whole.any():
                soonest = int(keys[whole].min())
                job.far = min(job.far, soonest)
            for place in np.flatnonzero(~whole & (keys < max(job.near, job.far))).tolist():
                heapq.heappush(job.missed, (int(keys[place]), number, int(samples[place])))

    def _readers(self, number: int) -> Iterator[PlannedJob]:
        return (job for job in self._jobs.values() if number in job.streams)

    # ---- what to do --------------------------------------------------------------------------------------------------

    def fetches(self, free: int, most: int) -> list[Fetch]:
        """What to fetch now, about `most` bytes of it, in the order in which it is read; noted as being on its way.

        `free`: bytes of room for which nothing must go that is planned.
        """
        found: list[Fetch] = []
        room = _Room(self, free)
        lots = 0
        self.more = self.crowded = False
        for near in (True, False):
            blocked: set[str] = set()
            while most > 0 and (job := self._next_job(blocked, near=near)) is not None:
                lots += 1
                if lots > LOTS:
                    self.more = True
                    return found
                step = self._step(job, blocked, near=near)
                for place, fetch in enumerate(step):
                    if most <= 0 or (full := not self._admits(room, fetch)):
                        self.crowded |= most > 0 and full
                        blocked.add(job.name)
                        self._step_back(job, step[place:])
                        break
                    most -= fetch.size
                    self._note(fetch)
                    found.append(fetch)
        return found

    def _admits(self, room: _Room, fetch: Fetch) -> bool:
        admitted = room.admits(fetch)
        if fetch.kind != "head":
            self.furthest = room.furthest
        return admitted

    def _next_job(self, blocked: set[str], *, near: bool) -> PlannedJob | None:
        """The job whose cursor is least ahead of its readers."""
        best: tuple[int, PlannedJob] | None = None
        for job in self._jobs.values():
            front = job.track.front
            job.near, job.far = max(job.near, front), max(job.far, front)
            cursor = job.near if near else job.far
            limit = min(front + self._near_positions(job), job.track.end) if near else job.track.end
            missed = bool(job.missed) and (not near or job.missed[0][0] < limit)
            if job.stuck or job.name in blocked:
                continue
            if (missed or cursor < limit) and (best is None or cursor - front < best[0]):
                best = cursor - front, job
        return best[1] if best else None

    def _step(self, job: PlannedJob, blocked: set[str], *, near: bool) -> list[Fetch]:
        """The next fetches of a job, and its cursor moved past them."""
        track = job.track
        front = track.front
        limit = front + self._near_positions(job) if near else track.end
        namer = Namer(job.name, front, self.link.gap, near=near)
        found: list[Fetch] = []
        if job.missed and (not near or job.missed[0][0] < limit):
            for number, samples, keys in self._missed(job, limit if near else UNKNOWN):
                found += namer.samples(self._datasets[number], samples, keys)
        elif (lot := self._look(job, job.near if near else job.far, limit)) is None:
            blocked.add(job.name)
        else:
            for state, samples, keys in lot.parts:
                found += self._of_lot(namer, state, samples, keys, near=near)
            if near:
                job.near = lot.stop
            else:
                job.far = lot.stop
        return sorted(found, key=lambda fetch: (fetch.key, fetch.kind != "head"))

    def _look(self, job: PlannedJob, cursor: int, limit: int) -> Lot | None:
        """The next stretch: a small part of the cache, since all that a request of it brings comes for its first."""
        stretch = max(int(self.capacity / LOT_SHARE / self._position_bytes(job)), 1)
        return look(job.track, job.streams, self._datasets, cursor, min(limit, cursor + stretch))

    def _of_lot(
        self, namer: Namer, state: DatasetState, samples: NDArray[np.int64], keys: NDArray[np.int64], *, near: bool
    ) -> Iterator[Fetch]:
        shards = state.shape.shard_of(samples)
        whole = state.shape.whole[shards] if near else state.by_shard[shards]
        yield from namer.shards(state, shards[whole], keys[whole])
        single = ~whole
        if near:
            single &= ~state.is_complete(shards)
        yield from namer.samples(state, samples[single], keys[single])

    def _missed(self, job: PlannedJob, limit: int) -> Iterable[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        found: dict[int, list[tuple[int, int]]] = {}
        for _ in range(min(len(job.missed), 1024)):
            if job.missed[0][0] >= limit:
                break
            key, number, sample = heapq.heappop(job.missed)
            if number in self._datasets:
                found.setdefault(number, []).append((sample, key))
        for number, pairs in found.items():
            samples = np.array([sample for sample, _ in pairs], np.int64)
            # What was read meanwhile is not waited for.
            keys = job.track.next_of_samples(number, samples)
            wanted = keys < max(job.near, job.far)
            yield number, samples[wanted], keys[wanted]

    def _step_back(self, job: PlannedJob, left: Sequence[Fetch]) -> None:
        """These fetches, what is left of a lot, are for later; so is what would have waited for their heads."""
        if left[0].near:
            job.near = min(job.near, left[0].key)
        else:
            job.far = min(job.far, left[0].key)
        for fetch in left:
            if fetch.kind == "head":
                state = self._datasets[fetch.dataset]
                for _, _, sample in state.waiting.pop(fetch.shard, ()):
                    if state.samples[sample] == WANTED:
                        state.samples[sample] = ABSENT

    def _note(self, fetch: Fetch) -> None:
        state = self._datasets[fetch.dataset]
        if fetch.kind == "head":
            state.heads[fetch.shard] = WANTED
        elif fetch.kind == "shard":
            state.shards[fetch.shard] = WANTED
        else:
            span = state.samples[fetch.first : fetch.stop]
            span[span == ABSENT] = WANTED

    def victims(self, distance: int = -1) -> Iterator[Unit]:
        """What may go for something that is read after `distance` samples: all that is read later, furthest first."""

        def units(job: PlannedJob, number: int, by_shard: bool) -> Iterator[Unit]:
            state = self._datasets[number]
            front = job.track.front
            for key, unit in job.calendars[number, by_shard].furthest(self._current(job, number, by_shard=by_shard)):
                apart = key if key >= UNKNOWN else key - front
                if apart <= distance:
                    return
                shard = unit if by_shard else int(state.shape.first.searchsorted(unit, "right")) - 1
                yield Unit(number, shard, None if by_shard else unit, apart)

        listed = [(job, *key) for job in self._jobs.values() for key in job.calendars if key[0] in self._datasets]
        for unit in heapq.merge(*(units(*each) for each in listed), key=lambda unit: -unit.distance):
            if self._distance_of(unit) >= unit.distance:
                yield unit

    def _distance_of(self, unit: Unit) -> int:
        if sum(1 for _ in self._readers(unit.dataset)) == 1:
            return unit.distance
        if unit.sample is None:
            return self.soonest_of_shard(unit.dataset, unit.shard)
        return self.soonest(unit.dataset, np.array([unit.sample], np.int64))

    def distances(self, number: int, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many samples are read before each of these by the job that reads it first; `UNKNOWN` where none does."""
        found = np.full(len(samples), UNKNOWN, np.int64)
        for job in self._readers(number):
            keys = job.track.next_of_samples(number, samples)
            np.minimum(found, np.where(keys < UNKNOWN, keys - job.track.front, UNKNOWN), out=found)
        return found

    def soonest(self, number: int, samples: NDArray[np.int64]) -> int:
        """The smallest of these."""
        return int(self.distances(number, samples).min(initial=UNKNOWN))

    def soonest_of_shard(self, number: int, shard: int) -> int:
        """The same for anything in a shard."""
        found = UNKNOWN
        for job in self._readers(number):
            key = int(job.track.next_of_shards(number, np.array([shard], np.int64))[0])
            found = min(found, key if key >= UNKNOWN else key - job.track.front)
        return found

    def _current(self, job: PlannedJob, number: int, *, by_shard: bool) -> calendar.Current:
        state = self._datasets[number]

        def current(units: NDArray[np.int64]) -> NDArray[np.int64]:
            here = state.held[units] > 0 if by_shard else state.samples[units] == HERE
            keys = np.full(len(units), calendar.ABSENT, np.int64)
            if here.any():
                find = job.track.next_of_shards if by_shard else job.track.next_of_samples
                keys[here] = find(number, units[here])
            return keys

        return current

    # ---- amounts -----------------------------------------------------------------------------------------------------

    def allowance(self) -> float:
        """Bytes that may still be given up for what is read far ahead."""
        return sum(job.given + self._due(job) for job in self._jobs.values()) - self._evicted

    def _due(self, job: PlannedJob) -> float:
        return (1.0 - self._share) * max(job.track.front - job.began, 0) * self._position_bytes(job)

    def _settle(self) -> None:
        """Something changes what is read next: what was due so far stays due."""
        self.turn += 1
        for job in self._jobs.values():
            job.given += self._due(job)
            job.began = job.track.front

    def _position_bytes(self, job: PlannedJob) -> float:
        """Bytes of data that are read first at a position, on average."""
        epoch = job.epoch
        if epoch is None or not epoch.epoch.positions:
            return 1.0
        needed = 0
        for number, need in epoch.needs.items():
            needed += need.shards if self._datasets[number].regime.kind == "shards" else need.samples
        return max(needed / epoch.epoch.positions, 1.0)

    def is_due(self, number: int, sample: int) -> bool:
        """Whether a reader that keeps to its order may be reading this sample now."""
        one = np.array([sample], np.int64)
        for job in self._readers(number):
            key = int(job.track.next_of_samples(number, one)[0])
            if key < job.track.lead + self._near_positions(job) + 2 * self._row(job):
                return True
        return False

    def _row(self, job: PlannedJob) -> int:
        """Positions of one batch of each reader of the host."""
        epoch = job.epoch
        return epoch.epoch.ranks * epoch.epoch.workers * epoch.epoch.size if epoch else 1

    def _near_positions(self, job: PlannedJob) -> int:
        each = self._position_bytes(job)
        # What is read soon pushes out what the next epoch could have found here: a small part of an epoch's bytes.
        spared = self.capacity * NEAR_PART / max(self._share, NEAR_PART) / each
        wanted = max(min(self.link.in_flight / each, spared), 2 * self._row(job))
        return max(int(min(wanted, self.capacity / NEAR_SHARE / each)), 1)

    def _near_bytes(self) -> int:
        return int(sum(self._near_positions(job) * self._position_bytes(job) for job in self._jobs.values()))

    def state_of(self, job: str) -> JobState | None:
        """Where a job is; None for one that is not planned."""
        known = self._jobs.get(job)
        if known is None:
            return None
        track = known.track
        place = track.place(track.front)
        horizon = max(known.near, known.far, track.front) - track.front
        return JobState(
            epoch=place[0] if place else None,
            position=track.front - track.bases[place[0]] if place else 0,
            horizon=horizon,
            known=track.end - track.front,
            ahead_bytes=int(horizon * self._position_bytes(known)),
            regimes={number: self._datasets[number].regime for number in known.streams if number in self._datasets},
        )


def _width(positions: int, size: int) -> int:
    """Positions that share a bucket of a calendar, of an epoch's and of a batch's."""
    return max(positions // BUCKETS, min(WIDE_ENOUGH, positions // LEAST_BUCKETS), size)


class _Room:
    """What still fits, while fetches are chosen."""

    def __init__(self, planner: Planner, free: int) -> None:
        self._planner, self._free = planner, free
        self._furthest: int | None = None
        self._allowance: float | None = None

    @property
    def furthest(self) -> int:
        """How far away what would go first is read; `UNKNOWN` where nothing had to."""
        return UNKNOWN if self._furthest is None else self._furthest

    def admits(self, fetch: Fetch) -> bool:
        """Whether there is room, or something may go for it; it is taken then."""
        if fetch.size <= self._free or fetch.kind == "head":
            self._free -= fetch.size
            return True
        if self._furthest is None:
            self._furthest = next((unit.distance for unit in self._planner.victims()), -1)
            self._allowance = self._planner.allowance()
        assert self._allowance is not None
        if self._furthest <= fetch.distance or not (fetch.near or fetch.size <= self._allowance):
            return False
        self._allowance -= fetch.size
        return True
