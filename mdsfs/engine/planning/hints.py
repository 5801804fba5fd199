"""Who will read what: jobs as readers have hinted them, where each reader is, and the orders that belong to them.

A job is what readers with the same key and the same hint have told, whichever process and connection it came over; it
is gone with the last of them. Everything that a hint says is advice: what makes no sense becomes a warning in the log
and in the status, never an answer with other bytes. The planner is told of every change and may do with it what it
likes; nobody here waits for it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import trio

from streaming.engine.hint import LARGEST
from streaming.errors import EngineError, ProtocolError, StreamingError

from .orders import identity

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from streaming.engine.hint import Hint

    from ..cache.dataset import Dataset
    from .orders import Order, Orders

__all__ = ["Hints", "Job", "Member", "Planner"]

log = logging.getLogger(__name__)

# One host has a few jobs; far more than that is somebody who wants the engine's memory.
MAX_JOBS = 256
MAX_MEMBERS = 64  # jobs of one connection
MAX_EPOCHS = 8  # of one job, at once
MAX_LANES = 1 << 16
MAX_WARNINGS = 16
# Between two epochs a loader ends its workers and starts new ones: so long its job waits for them.
LINGER = 30.0
MOST_SHOWN = 256

Local = Callable[[str], "Path | None"]
# The next epoch's order is wanted when so large a part (one in …) of this one has been read.
UNDER_WAY = 16

Lane = tuple[int, int]  # rank on this host, worker of the rank
Place = tuple[int, int]  # epoch, next batch to be read


class Planner(Protocol):
    """What is told of jobs, in the engine's thread, between two awaits."""

    def job_changed(self, job: Job) -> None:
        """A new job, or `orders` has others than before."""
        ...

    def moved(self, job: Job, rank: int, worker: int, epoch: int, batch: int) -> None:
        """A reader is about to read this batch of this epoch."""
        ...

    def job_ended(self, job: Job) -> None:
        """Its last reader has gone."""
        ...


class _Epoch:
    """The order of one epoch: on its way, here, or failed."""

    def __init__(self, drop: int) -> None:
        self.drop = drop
        self.order: Order | None = None
        self.error: StreamingError | None = None
        self.settled = trio.Event()
        self.scope = trio.CancelScope()


class Job:
    """One job as the engine knows it; read by the planner, changed by `Hints` alone."""

    def __init__(
        self,
        key: str,
        hint: Hint,
        datasets: Sequence[Dataset | None],
        locals_: Sequence[Local | None],
        sizes: Sequence[int],
    ) -> None:
        self.key = key
        self.source = "order" if hint.ids is None else "ids"
        """Where the order is from: computed from its arguments, or published as it is."""
        self.hint = dataclasses.replace(hint, ids=None)
        self.datasets = tuple(datasets)
        """One per stream; None for a stream that this engine does not fetch."""
        self.locals = tuple(locals_)
        """Per stream: where an object lies on a local disk and may be handed out as it is; None where it does not."""
        self.first_ids: NDArray[np.int64] = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])
        """int64 [streams + 1]: id of each stream's first sample in the mix."""
        self.orders: dict[int, NDArray[np.int64]] = {}
        """Epoch to int64 [ranks on this host][workers][batches][batch size], ids of the mix, -1 for none; read-only."""
        self.positions: dict[Lane, Place] = {}
        """Where each reader is: the epoch and batch that it reads next; of several in a lane the last in the newest."""
        self.warnings: deque[str] = deque(maxlen=MAX_WARNINGS)
        self.members: set[Member] = set()
        self.lanes: dict[Lane, dict[Member, Place]] = {}
        self.by_pages = False
        """Somebody reads through a kernel's page cache, which asks for whole pages however small a sample is."""
        self.begun = 0
        """The epoch that was begun last."""
        self.lingering = trio.CancelScope()
        self.epochs: dict[int, _Epoch] = {}

    def __repr__(self) -> str:
        return f"Job({self.key}, epochs {sorted(self.orders)}, {len(self.positions)} readers)"

    @property
    def epoch(self) -> int | None:
        """The epoch of the reader that is furthest."""
        return max((epoch for epoch, _ in self.positions.values()), default=None)

    def is_finished(self, lane: Lane) -> bool:
        """Whether this reader has come to the end of its epoch."""
        epoch, batch = self.positions.get(lane, (0, -1))
        order = self.orders.get(epoch)
        return order is not None and batch >= order.shape[2]

    def warn(self, text: str) -> None:
        """Say once what is wrong with this job's hints."""
        if text not in self.warnings:
            self.warnings.append(text)
            log.warning("hint of job %s: %s", self.key, text)

    def to_json(self) -> dict[str, Any]:
        """What the status shows."""
        readers = sorted(self.positions.items())[:MOST_SHOWN]
        return {
            "key": self.key,
            "source": self.source,
            "datasets": [None if each is None else each.url for each in self.datasets[:MOST_SHOWN]],
            "epoch": self.epoch,
            "orders": {str(number): _said(epoch) for number, epoch in sorted(self.epochs.items())},
            "positions": [
                {"rank": rank, "worker": worker, "epoch": epoch, "batch": batch}
                for (rank, worker), (epoch, batch) in readers
            ],
            "readers": sorted({member.pid for member in self.members})[:MOST_SHOWN],
            "warnings": list(self.warnings),
        }


def _said(epoch: _Epoch) -> str:
    if epoch.order is not None:
        return "ready"
    return "being computed" if epoch.error is None else f"failed: {epoch.error}"


class Member:
    """One connection's part in a job."""

    def __init__(self, job: Job, pid: int) -> None:
        self.job = job
        self.pid = pid
        self.numpy = ""
        """Of the reader, as it said last."""
        self.places: dict[Lane, Place] = {}

    def __repr__(self) -> str:
        return f"Member({self.job.key}, pid {self.pid}, {self.places})"


class Hints:
    """All jobs."""

    def __init__(self, orders: Orders, nursery: trio.Nursery) -> None:
        """`nursery`: where orders are waited for; it outlives every client."""
        self.jobs: dict[str, Job] = {}
        self.refused: deque[str] = deque(maxlen=MAX_WARNINGS)
        """Warnings about hints that made no job."""
        self.planner: Planner | None = None
        self._orders = orders
        self._nursery = nursery

    def __repr__(self) -> str:
        return f"Hints({len(self.jobs)} jobs)"

    @property
    def most_bytes(self) -> int:
        """A document that is larger says more than could be followed."""
        return self._orders.budget

    def refuse(self, pid: int, error: StreamingError) -> None:
        """Remember why a hint was none."""
        text = f"pid {pid}: {error}"
        if text not in self.refused:
            self.refused.append(text)
            log.warning("a hint was refused: %s", text)

    def to_json(self) -> list[dict[str, Any]]:
        """What the status shows of every job."""
        return [job.to_json() for job in list(self.jobs.values())[:MOST_SHOWN]]

    # ---- readers come, move and go -----------------------------------------------------------------------------------

    def join(
        self,
        hint: Hint,
        datasets: Sequence[Dataset | None],
        locals_: Sequence[Local | None],
        pid: int,
        others: Iterable[Member],
    ) -> Member:
        """A reader's part in the job that the hint describes; `others`: the parts its connection has already.

        Raises ProtocolError or EngineError for a hint that can't be followed.
        """
        sizes = [
            int(each.sizes.sum()) if each.sizes is not None else _samples(dataset)
            for each, dataset in zip(hint.streams, datasets, strict=True)
        ]
        own = sum(dataset.tables.samples for dataset in datasets if dataset is not None)
        self._orders.check(hint, own, sum(sizes))
        key = f"{hint.job}#{hashlib.blake2s(repr(identity(hint, datasets)).encode(), digest_size=6).hexdigest()}"
        known = list(others)
        for member in known:
            if member.job.key == key:
                return member
        if len(known) >= MAX_MEMBERS:
            raise EngineError(f"{MAX_MEMBERS} jobs are hinted on one connection: retract those that have ended")
        job = self.jobs.get(key)
        if job is None:
            if len(self.jobs) >= MAX_JOBS:
                raise EngineError(f"{MAX_JOBS} jobs are hinted at once: no more are followed")
            job = self.jobs[key] = Job(key, hint, datasets, locals_, sizes)
        member = Member(job, pid)
        job.members.add(member)
        job.lingering.cancel()
        return member

    def begin(self, member: Member, epoch: int, drop: int, places: Sequence[tuple[int, int, int]], hint: Hint) -> None:
        """The reader begins, or enters, an epoch: `drop` samples of it are behind the run; (rank, worker, batch) …

        Raises EngineError where too many epochs are begun at once.
        """
        job = member.job
        known = job.epochs.get(epoch)
        if known is not None and known.drop != drop:
            self._drop_epoch(job, epoch)
            known = None
        if known is None:
            if len(job.epochs) >= MAX_EPOCHS:
                self._tidy(job)
            if len(job.epochs) >= MAX_EPOCHS:
                raise EngineError(f"the readers of one job are in {MAX_EPOCHS} epochs at once")
            if hint.ids is None:
                self._compute(job, epoch, drop)
            else:
                self._publish(job, epoch, drop, hint.ids)
        job.begun = epoch
        if self.planner is not None:
            self.planner.job_changed(job)
        for lane in list(member.places):
            self._take_away(member, lane)
        self.move(member, epoch, places)
        self._tidy(job)

    def move(self, member: Member, epoch: int, places: Sequence[tuple[int, int, int]]) -> None:
        """Readers are about to read (rank, worker, batch) … of an epoch."""
        job, world = member.job, member.job.hint.world
        turned = False
        for rank, worker, batch in places:
            if rank >= world.local_ranks or worker >= world.workers or len(job.positions) > MAX_LANES:
                job.warn(f"a reader of rank {rank}, worker {worker}: there are {world.local_ranks} × {world.workers}")
                continue
            lane, batch = (rank, worker), min(batch, LARGEST)
            turned |= member.places.get(lane, (epoch, 0))[0] != epoch
            member.places[lane] = job.lanes.setdefault(lane, {})[member] = (epoch, batch)
            self._place(job, lane)
            if self.planner is not None:
                self.planner.moved(job, rank, worker, *job.positions[lane])
        if turned:
            self._tidy(job)
        if places:
            self._look_forward(job, epoch, max(batch for _, _, batch in places))

    def leave(self, member: Member) -> None:
        """The reader has gone, or goes on without."""
        job = member.job
        job.members.discard(member)
        for lane in list(member.places):
            self._take_away(member, lane)
        if job.members:
            self._tidy(job)
        elif job.positions:
            self._nursery.start_soon(self._linger, job, name=f"end of {job.key}")
        else:
            self._end(job)

    async def _linger(self, job: Job) -> None:
        """Every reader has read its epoch to the end: those of the next one may be about to come."""
        with trio.CancelScope() as job.lingering:
            await trio.sleep(LINGER)
            if not job.members and self.jobs.get(job.key) is job:
                self._end(job)

    def _take_away(self, member: Member, lane: Lane) -> None:
        del member.places[lane]
        del member.job.lanes[lane][member]
        self._place(member.job, lane)

    def _place(self, job: Job, lane: Lane) -> None:
        """Where the readers of a lane are: one that has gone at the end of its epoch is still there."""
        places = job.lanes[lane].values()
        if places:
            newest = max(epoch for epoch, _ in places)
            job.positions[lane] = min(place for place in places if place[0] == newest)
        elif not job.is_finished(lane):
            job.positions.pop(lane, None)

    def _end(self, job: Job) -> None:
        for epoch in list(job.epochs):
            self._drop_epoch(job, epoch)
        del self.jobs[job.key]
        if self.planner is not None:
            self.planner.job_ended(job)

    # ---- orders ------------------------------------------------------------------------------------------------------

    async def order(self, member: Member, epoch: int) -> Order:
        """The order of an epoch that the reader has begun; waits for it. Raises EngineError where there is none."""
        entry = member.job.epochs.get(epoch)
        if entry is None:
            raise ProtocolError(f"epoch {epoch} of this job has not begun")
        await entry.settled.wait()
        if entry.order is None:
            raise entry.error or EngineError(f"the order of epoch {epoch} is not needed any more")
        return entry.order

    def ready(self, member: Member, epoch: int) -> Order | None:
        """The order of an epoch if it is here."""
        entry = member.job.epochs.get(epoch)
        return entry.order if entry is not None else None

    def _tidy(self, job: Job) -> None:
        """Forget the orders that every reader has left behind."""
        needed = {epoch for epoch, _ in job.positions.values()} or {job.begun}
        needed.add(max(needed) + 1)
        gone = [epoch for epoch in job.epochs if epoch not in needed]
        for epoch in gone:
            self._drop_epoch(job, epoch)
        if gone and self.planner is not None:
            self.planner.job_changed(job)

    def _look_forward(self, job: Job, epoch: int, batch: int) -> None:
        """Have the next epoch's order computed when this one is under way.

        Early: what the cache keeps of this epoch for the next one is decided batch by batch, from here on.
        """
        order = job.orders.get(epoch)
        if order is None or UNDER_WAY * batch < order.shape[2] or epoch + 1 in job.epochs or job.source == "ids":
            return
        if epoch == job.epoch and len(job.epochs) < MAX_EPOCHS:
            self._compute(job, epoch + 1, 0)

    def _compute(self, job: Job, epoch: int, drop: int) -> None:
        entry = job.epochs[epoch] = _Epoch(drop)
        self._nursery.start_soon(self._wait_for_order, job, epoch, entry, name=f"order of epoch {epoch} of {job.key}")

    def _publish(self, job: Job, epoch: int, drop: int, ids: NDArray[np.int64]) -> None:
        order = self._orders.take_in(ids)
        entry = job.epochs[epoch] = _Epoch(drop)
        entry.order = order
        entry.settled.set()
        job.orders[epoch] = order.array

    async def _wait_for_order(self, job: Job, epoch: int, entry: _Epoch) -> None:
        found: Order | None = None
        with entry.scope:
            try:
                found = await self._orders.get(job.hint, job.datasets, epoch, entry.drop)
            except StreamingError as error:
                entry.error = error
                job.warn(f"no order of epoch {epoch}: {error}")
        if found is not None and (entry.scope.cancel_called or job.epochs.get(epoch) is not entry):
            self._orders.release(found)
        elif found is not None:
            entry.order = found
            job.orders[epoch] = found.array
            if self.planner is not None:
                self.planner.job_changed(job)
        entry.settled.set()

    def _drop_epoch(self, job: Job, epoch: int) -> None:
        entry = job.epochs.pop(epoch)
        entry.scope.cancel()
        job.orders.pop(epoch, None)
        if entry.order is not None:
            self._orders.release(entry.order)


def _samples(dataset: Dataset | None) -> int:
    assert dataset is not None
    return dataset.tables.samples
