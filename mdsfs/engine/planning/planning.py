"""The engine's plan: what is known of jobs goes to the planner, and what the planner wants becomes flights.

Its calls come from the hints, synchronously, and only note what has happened; the task `run` launches. What costs time
at large sizes (sorting an epoch's order) is done in a thread, before the planner hears of that epoch; readers are
served without a plan until then.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import trio

from mdsfs.plan.bounds import refetching
from mdsfs.plan.calendar import UNKNOWN
from mdsfs.plan.planner import Planner
from mdsfs.plan.state import ABSENT
from mdsfs.plan.track import prepare, shards_read
from streaming.engine.residency import BLOCK
from streaming.errors import StreamingError

from ..cache.ledger import EXTENTS_PER_BLOCK
from .knownjob import KnownJob, streams_of
from .planned import PlannedPolicy, advice
from .planneddataset import PlannedDataset
from .stalls import Stall

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from mdsfs.plan.epoch import Stream
    from mdsfs.plan.planner import Fetch
    from mdsfs.plan.track import Prepared

    from ..cache.cache import Cache
    from ..cache.dataset import Dataset
    from ..filling.fills import Fills
    from ..filling.flights import ByteRange, Flight
    from ..filling.wants import WantedRange
    from .hints import Job
    from .stalls import Cause

__all__ = ["Planning"]

log = logging.getLogger(__name__)

# Bytes on their way at once, whatever the link seems to be like, and of a small cache only a part.
LEAST_IN_FLIGHT = 4 << 20
MOST_IN_FLIGHT = 256 << 20
SHARE = 8
# ... of which so large a part may be missing before more is asked for.
REFILL = 4
# Each decision looks at every job's next uses: more jobs than any host has would make all of them slow.
MOST_JOBS = 32
# Of smaller samples the requests cost more than the rest of their blocks.
LEAST_CUT = 2 * BLOCK
# Orders that are sorted at the same time: each takes some bytes of memory per sample meanwhile.
SORTED_AT_ONCE = 1


class _Under:
    """A fetch under way, in so many flights."""

    __slots__ = ("fetch", "left", "no_room")

    def __init__(self, fetch: Fetch) -> None:
        self.fetch = fetch
        self.left = 1
        self.no_room = False


class Planning:
    """The plan of one engine. `run` must be running."""

    def __init__(self, cache: Cache, fills: Fills, nursery: trio.Nursery) -> None:
        """Becomes the policy of the cache, which must be empty still; `nursery` outlives every client."""
        self.planner = Planner(cache.ledger.limit * BLOCK)
        self.policy = PlannedPolicy(self.planner)
        self._cache, self._fills, self._nursery = cache, fills, nursery
        self._jobs: dict[str, KnownJob] = {}
        self._admitting: dict[int, trio.Event] = {}
        self._sorting = trio.CapacityLimiter(SORTED_AT_ONCE)
        self._under: set[_Under] = set()
        self._launched: set[Flight] = set()
        self._work = trio.Event()
        cache.policy = self.policy
        self.policy.may_go = cache.may_go
        fills.cuts, fills.worth = self._cuts, self._worth

    def __repr__(self) -> str:
        return f"Planning({len(self._jobs)} jobs, {len(self._under)} fetches under way)"

    def covers(self, dataset: Dataset) -> bool:
        """Whether the plan looks after this dataset: reads of it need no guess at what comes next."""
        return self.planner.covers(dataset.number)

    # ---- what the hints tell -----------------------------------------------------------------------------------------

    @advice
    def job_changed(self, job: Job) -> None:
        """A new job, or it has other orders than before."""
        known = self._jobs.get(job.key)
        if known is None and len(self._jobs) >= MOST_JOBS:
            log.warning("job %s is not planned: %d others are", job.key, MOST_JOBS)
            return
        if known is None or known.job is not job:
            known = self._jobs[job.key] = KnownJob(job)
        for epoch in [epoch for epoch, order in known.epochs.items() if job.orders.get(epoch) is not order]:
            del known.epochs[epoch]
            self.planner.drop_epoch(job.key, epoch)
        for epoch, order in sorted(job.orders.items()):
            if epoch not in known.epochs:
                known.epochs[epoch] = order
                self._nursery.start_soon(self._learn, known, epoch, order, name=f"plan of epoch {epoch} of {job.key}")

    @advice
    def moved(self, job: Job, rank: int, worker: int, epoch: int, batch: int) -> None:
        """A reader is about to read this batch of this epoch."""
        self.planner.moved(job.key, rank, worker, epoch, batch)
        self._work.set()

    @advice
    def job_ended(self, job: Job) -> None:
        """Its last reader has gone."""
        known = self._jobs.pop(job.key, None)
        if known is None:
            return
        known.epochs.clear()
        self.planner.remove_job(job.key)
        for number in known.numbers - {each for other in self._jobs.values() for each in other.numbers}:
            self.policy.unplan(number)
        self._set_capacity()

    # ---- orders ------------------------------------------------------------------------------------------------------

    async def _learn(self, known: KnownJob, epoch: int, order: NDArray[np.int64]) -> None:
        """Prepare an epoch's order, and give it to the planner if it is still wanted then."""
        job = known.job
        datasets = {each.number: each for each in job.datasets if each is not None}
        try:
            for dataset in datasets.values():
                await self._admit(known, dataset)
            streams = streams_of(job)
            shapes = {number: self.policy.datasets[number].shape for number in streams}
            prepared = await trio.to_thread.run_sync(prepare, order, streams, shapes, limiter=self._sorting)
        except Exception as error:  # whatever somebody has hinted ends neither the engine nor a reader
            log.warning("no plan of epoch %d of job %s: %s", epoch, job.key, error)
            return
        if self._jobs.get(job.key) is not known or known.epochs.get(epoch) is not order:
            return
        self._take(job, streams, epoch, prepared)
        for number in streams:
            await self._say(known, number, prepared)

    @advice
    def _take(self, job: Job, streams: dict[int, list[Stream]], epoch: int, prepared: Prepared) -> None:
        """The planner knows this epoch from here on."""
        self.planner.add_epoch(job.key, streams, epoch, prepared)
        for (rank, worker), place in job.positions.items():
            self.planner.moved(job.key, rank, worker, *place)
        self._set_capacity()
        self._work.set()

    async def _say(self, known: KnownJob, number: int, prepared: Prepared) -> None:
        """What was chosen for a dataset, and what that costs where shards can't be fetched by range."""
        if (planned := self.policy.datasets.get(number)) is None:
            return  # the job has ended meanwhile
        url, regime = planned.dataset.url, self.planner.dataset(number).regime
        log.info("plan of %s: %s, %s", url, regime.kind, regime.reason)
        if regime.kind == "shards" or known.warnings or not planned.is_compressed_whole:
            return
        shards, sizes = shards_read(prepared, number, planned.shape), planned.shape.sizes
        times = await trio.to_thread.run_sync(refetching, shards, sizes, self.planner.capacity, limiter=self._sorting)
        known.warnings.append(
            f"{url}: its shards are compressed as one piece, so that no sample can be fetched alone, and "
            f"{regime.reason}: an epoch fetches its bytes about {times:.3g} times; `mdsfs repack` makes them seekable, "
            f"a cache of {regime.changes_at_bytes} bytes holds them"
        )
        log.warning("%s", known.warnings[0])

    async def _admit(self, known: KnownJob, dataset: Dataset) -> None:
        """Make a dataset known to the planner."""
        known.numbers.add(dataset.number)
        while (event := self._admitting.get(dataset.number)) is not None:
            await event.wait()
        if dataset.number in self.policy.datasets:
            return
        event = self._admitting[dataset.number] = trio.Event()
        try:
            if len(dataset.tables.files) and any(each.startswith("zstd") for each in dataset.tables.compressions):
                await self._fills.forms.find(dataset, int(dataset.tables.shards["file"][0]))
            if self._jobs.get(known.job.key) is not known:
                raise StreamingError("the job has ended")
            self.policy.plan(PlannedDataset(dataset))
            self._nursery.start_soon(self._survey, dataset, name=f"survey of {dataset.number}")
        finally:
            del self._admitting[dataset.number]
            event.set()

    async def _survey(self, dataset: Dataset) -> None:
        """Tell the planner what has been resident before it came."""
        planned = self.policy.datasets.get(dataset.number)
        if planned is None or dataset.number not in self._cache.datasets:
            return
        for file in list(self._cache.ledger.files_with_blocks(dataset.number)):
            if (shard := planned.shard_of(file)) < 0:
                continue
            found = await trio.to_thread.run_sync(planned.read, shard)
            if self.policy.datasets.get(dataset.number) is not planned or dataset.number not in self._cache.datasets:
                return
            if found is not None:
                planned.keep(shard, found)
            for first, count in dataset.stretches(file):
                self.policy.arrived([(dataset, file, first, count)])
        self._work.set()

    def _set_capacity(self) -> None:
        """What the cache has for data: without what files cost beside it."""
        ledger = self._cache.ledger
        beside = 0
        for number, planned in self.policy.datasets.items():
            beside += (planned.shape.shards if ledger.trees else 0) + int(planned.dataset.bitmap_pages().sum())
            if self.planner.dataset(number).regime.kind == "ranges":  # what is kept of samples are not their tables
                counts = planned.shape.first[1:] - planned.shape.first[:-1]
                beside += int((-(-(4 * counts + 8) // BLOCK)).sum())
        # Of a planned dataset what is pinned is read as well; that of others is only in the way.
        others = self._cache.datasets.keys() - self.policy.datasets.keys()
        blocks = max(ledger.limit - ledger.fixed - sum(map(self._cache.pins.blocks_of, others)), 0)
        blocks -= min(beside, blocks // 4)
        if ledger.trees:
            blocks = blocks * EXTENTS_PER_BLOCK // (EXTENTS_PER_BLOCK + 1)
        self.planner.capacity = max(blocks, 1) * BLOCK
        self.planner.decide()

    # ---- fetching ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Launch for ever what the planner wants."""
        while True:
            await self._work.wait()
            self._work = trio.Event()
            # a job may outlive its last reader by a moment: nothing is fetched for nobody
            if any(each.dataset.users for each in self.policy.datasets.values()):
                self.planner.link = self._fills.pool.meter.link()
                self._pump()
            await trio.lowlevel.checkpoint()

    @advice
    def _pump(self) -> None:
        target = self._target()
        wanted = target - self._fills.in_flight * BLOCK
        # small fetches are cheap by the dozen: what is missing is asked for when it is worth it
        if wanted <= target // REFILL or len(self._under) >= self._fills.pool.most_running:
            return
        for fetch in self.planner.fetches(self._free(), wanted):
            self._launch(fetch)
        if self.planner.more:
            self._work.set()

    def _target(self) -> int:
        """Bytes that are to be on their way."""
        target = max(LEAST_IN_FLIGHT, min(2 * self.planner.link.in_flight, MOST_IN_FLIGHT))
        return min(target, self._cache.ledger.limit * BLOCK // SHARE)

    def _free(self) -> int:
        """Bytes for which nothing planned must go."""
        ledger = self._cache.ledger
        coming = sum(each.count for each in self._launched if not each.reserved and each.frontier == each.start)
        stays = 0
        for number in self._cache.datasets:
            resident = ledger.dataset_resident(number)
            pinned = min(self._cache.pins.blocks_of(number), resident)
            stays += resident if number in self.policy.datasets else pinned
        return max(ledger.free - coming + ledger.resident - stays, 0) * BLOCK

    def _launch(self, fetch: Fetch) -> None:
        planned = self.policy.datasets[fetch.dataset]
        dataset, under = planned.dataset, _Under(fetch)
        if not dataset.users:
            self.planner.ended(fetch, again=False)
            return
        self._under.add(under)
        for file, start, stop in self._ranges(planned, fetch):
            under.left += 1
            if dataset.checked[file] and self._fills.forms.is_known(dataset, file):
                self._fly(under, dataset, file, start, stop)
            else:
                # may take as long as the store does: the others must not wait
                self._nursery.start_soon(self._find, under, dataset, file, start, stop)
        self._part_ended(under)

    def _ranges(self, planned: PlannedDataset, fetch: Fetch) -> Iterator[tuple[int, int, int]]:
        """The byte ranges of a fetch, by file."""
        files = planned.files(fetch.shard)
        if fetch.kind == "head":
            yield files[0], 0, planned.shape.head_bytes(fetch.shard)
        elif fetch.kind == "shard":
            for file in reversed(files):  # of the line formats the meta file first
                yield file, 0, planned.dataset.size(file)
        elif (offsets := planned.offsets(fetch.shard)) is not None:
            base = int(planned.shape.first[fetch.shard])
            yield files[0], *planned.span_of(offsets, fetch.first - base, fetch.stop - base)

    def _cuts(self, dataset: Dataset, file: int) -> bool:
        """Whether samples are fetched without what else lies on their outer blocks: their shard is not kept as a whole,
        nobody reads it by pages, and it saves more than the requests that a neighbour's part of a block saves."""
        planned = self.policy.datasets.get(dataset.number)
        if planned is None or (shard := planned.shard_of(file)) < 0 or planned.shape.sample_bytes <= LEAST_CUT:
            return False
        if self.planner.dataset(dataset.number).by_shard[shard]:
            return False
        return not any(each.job.by_pages and dataset.number in each.numbers for each in self._jobs.values())

    def _worth(self, dataset: Dataset, file: int, span: ByteRange, most: ByteRange) -> ByteRange:
        """Of the bytes around some samples that come with them, those that are read before what would go for them."""
        planned, limit = self.policy.datasets[dataset.number], self.planner.furthest
        shard = planned.shard_of(file)
        if limit >= UNKNOWN:
            return most
        if (offsets := planned.offsets(shard)) is None:
            return span
        inside = slice(int(offsets.searchsorted(most[0])), int(offsets.searchsorted(most[1], "right")) - 1)
        wanted = np.zeros(len(offsets) - 1, np.bool_)
        samples = np.arange(len(wanted))[inside] + int(planned.shape.first[shard])
        wanted[inside] = self.planner.distances(dataset.number, samples) < limit
        return planned.widened(offsets, span, most, wanted)

    async def _find(self, under: _Under, dataset: Dataset, file: int, start: int, stop: int) -> None:
        try:
            await self._fills.check(dataset, file)
            await self._fills.forms.find(dataset, file)
        except StreamingError as error:
            log.debug("not fetching ahead: %s", error)
            self._part_ended(under)
            return
        self._fly(under, dataset, file, start, stop)

    def _fly(self, under: _Under, dataset: Dataset, file: int, start: int, stop: int) -> None:
        def landed(flight: Flight) -> None:
            self._launched.discard(flight)
            under.no_room |= flight.no_room
            self._part_ended(under)

        work = dataset.work.get(file)
        if work is None or work.error is None:
            distance = under.fetch.distance
            flights = self._fills.launch(
                dataset,
                file,
                start,
                stop,
                demand=False,
                cut=under.fetch.kind == "samples" and self._cuts(dataset, file),
                distance=distance,
                landed=landed,
            )
            under.left += len(flights)
            self._launched.update(flights)
            if not flights:
                first = start // BLOCK
                self.policy.arrived([(dataset, file, first, -(-stop // BLOCK) - first)])
        self._part_ended(under)

    def _part_ended(self, under: _Under) -> None:
        under.left -= 1
        if under.left:
            return
        self._under.discard(under)
        if under.fetch.dataset in self.policy.datasets:
            self.planner.ended(under.fetch, again=under.no_room)
        self._work.set()

    # ---- for people --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def waiting(self, dataset: Dataset, wanted: Sequence[WantedRange], reader: int) -> Iterator[None]:
        """While the block runs, a reader waits for the first of these that is not here."""
        planned = self.policy.datasets.get(dataset.number)
        absent = next(
            (each for each in wanted if not dataset.is_here(each.file, each.start, each.stop, sample=each.sample)), None
        )
        if planned is None or absent is None or (shard := planned.shard_of(absent.file)) < 0:
            yield
            return
        sample = self._sample_at(planned, shard, absent)
        cause = self._cause(planned, shard, sample)
        begun = trio.current_time()
        try:
            yield
        finally:
            name = dataset.tables.name(absent.file)
            stall = Stall(reader, name, sample, cause, trio.current_time() - begun)
            for known in self._jobs.values():
                if dataset.number in known.numbers and reader in {member.pid for member in known.job.members}:
                    known.stalls.add(stall)

    def _sample_at(self, planned: PlannedDataset, shard: int, wanted: WantedRange) -> int | None:
        """The sample that a range begins in; None in the head, and where that is not known."""
        offsets = planned.offsets(shard)
        if offsets is None or wanted.start < offsets[0]:
            return None
        low, high = planned.samples_in(offsets, wanted.start // BLOCK, 1)
        at = low + int(np.searchsorted(offsets[low : high + 1], wanted.start, "right")) - 1
        return int(planned.shape.first[shard]) + min(at, len(offsets) - 2)

    def _cause(self, planned: PlannedDataset, shard: int, sample: int | None) -> Cause:
        number = planned.dataset.number
        if sample is not None and not self.planner.is_due(number, sample):
            return "unplanned read"
        if planned.shape.whole[shard] and planned.dataset.tables.compression(planned.files(shard)[0]) is not None:
            return "decompression"
        if self._fills.in_flight * BLOCK >= self._target() - LEAST_IN_FLIGHT // 4:
            return "bandwidth"
        absent = sample is not None and self.planner.dataset(number).samples[sample] == ABSENT
        return "limit" if absent and self.planner.crowded else "latency"

    def to_json(self, key: str) -> dict[str, Any] | None:
        """What the status shows of a job's plan; None where there is none yet."""
        known, state = self._jobs.get(key), self.planner.state_of(key)
        if known is None or state is None:
            return None
        return known.to_json(state, {number: each.dataset.url for number, each in self.policy.datasets.items()})
