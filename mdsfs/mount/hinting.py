"""The mount's hint, for readers that can't give one: tells the engine the order of `--order`, and where readers are.

Owns the task that does it. What readers open comes in as events and is looked at in batches, so that a handler costs
what an append costs. Whatever goes wrong here is logged once and changes no read.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np
import trio

from streaming.engine.hint import encode
from streaming.engine.sealed import map_sealed, sealed_memory
from streaming.errors import StreamingError

from .following import Follower
from .session import REPLY_PATIENCE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .link import Link
    from .ordering import OrderOptions
    from .session import Attached, Session

__all__ = ["MountHint"]

log = logging.getLogger(__name__)

# What is opened within this time is looked at together.
INTERVAL = 0.02
MAX_EVENTS = 1 << 16
# An order of 10⁹ samples takes minutes.
ORDER_PATIENCE = 600.0
# Readers that are in none of the epochs known are looked for in the first so many, then no more for a while.
EPOCHS = 32
REST = 60.0


class MountHint:
    """One mount's hint. `run` must be running."""

    def __init__(self, options: OrderOptions, link: Link, which: int, name: str) -> None:
        """`which`: the dataset's place in the mount's list."""
        dataset = link.known[which]
        self.which = which
        self._options = options
        self._link = link
        self._name = name
        self._shards = np.asarray(dataset.tables.files["shard"], np.int64)
        self._follower = Follower(dataset.tables.first_sample)
        self._events: deque[tuple[int, int]] = deque(maxlen=MAX_EVENTS)
        self._something = trio.Event()
        self._job = 0
        self._tried: list[int] = []
        self._rest, self._rest_until = REST, 0.0
        self._learning: set[int] = set()
        self._told: dict[tuple[int, int], tuple[int, int]] = {}

    def __repr__(self) -> str:
        return f"MountHint({self._name}, {self._follower})"

    def opened(self, thread: int, row: int) -> None:
        """A thread turns to a file of the dataset."""
        if (shard := int(self._shards[row])) >= 0:
            self._events.append((thread, shard))
            self._something.set()

    async def run(self) -> None:
        """Hint each session, and follow the readers, until cancelled."""
        while True:
            session = await self._link.next_session()
            try:
                await self._follow(session)
            except StreamingError as error:
                log.warning("the order of %s is not followed: %s", self._name, error)
            except ValueError as error:
                log.warning("the order of %s makes no sense: %s", self._name, error)
            await session.withdrawn.wait()

    async def _follow(self, session: Session) -> None:
        self._told.clear()
        self._learning.clear()
        await self._begin(session, max((spot.epoch for spot in self._follower.spots), default=self._options.epoch))
        self._something.set()  # another engine has to hear where everybody is
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._end_with, session, nursery.cancel_scope)
            while True:
                await self._something.wait()
                await trio.sleep(INTERVAL)
                self._something = trio.Event()
                while self._events:
                    self._follower.seen(*self._events.popleft())
                try:
                    await self._search(session)
                except StreamingError as error:
                    log.warning("readers of %s are not looked for: %s", self._name, error)
                self._tell(session, nursery)

    async def _end_with(self, session: Session, scope: trio.CancelScope) -> None:
        await session.withdrawn.wait()
        scope.cancel()

    async def _begin(self, session: Session, epoch: int) -> None:
        """Hint an epoch, and learn its order."""
        attached: Attached = session.dataset(self.which)
        sizes = attached.tables.shards["samples"].astype(np.int64)
        fd = sealed_memory("mdsfs-hint", encode(self._options.hint(self._name, attached.number, sizes)))
        try:
            reply = await session.connection.request(
                "hint", patience=REPLY_PATIENCE, send=(fd,), epoch=epoch, drop=0, at=[]
            )
        finally:
            os.close(fd)
        reply.close()
        self._job = int(reply.message["job"])
        await self._learn(session, epoch)

    async def _learn(self, session: Session, epoch: int) -> None:
        reply = await session.connection.request(
            "order", patience=ORDER_PATIENCE, job=self._job, epoch=epoch, timeout=ORDER_PATIENCE - 1
        )
        try:
            shape = [int(side) for side in reply.message["shape"]]
            data = map_sealed(reply.fds[0], max(8 * int(np.prod(shape)), 1))
        finally:
            reply.close()
        order: NDArray[np.int64] = np.frombuffer(data, np.int64).reshape(shape)
        self._follower.learn(epoch, order)

    def _tell(self, session: Session, nursery: trio.Nursery) -> None:
        """Say what has changed; have the next epoch's order when somebody is in the second half of one."""
        follower = self._follower
        moved: dict[int, list[list[int]]] = {}
        for spot in follower.spots:
            place = (spot.epoch, follower.batch(spot))
            if self._told.get((spot.rank, spot.worker)) != place:
                self._told[spot.rank, spot.worker] = place
                moved.setdefault(spot.epoch, []).append([spot.rank, spot.worker, place[1]])
        for epoch, places in sorted(moved.items()):
            session.connection.tell("position", job=self._job, epoch=epoch, at=places)
        if not follower.spots:
            return
        self._tried.clear()
        self._rest = REST
        last = max(spot.epoch for spot in follower.spots)
        for epoch in follower.epochs:
            if epoch < min(spot.epoch for spot in follower.spots):
                follower.forget(epoch)
        batch = max(follower.batch(spot) for spot in follower.spots if spot.epoch == last)
        if last + 1 not in {*follower.epochs, *self._learning} and 2 * batch >= follower.batches(last):
            self._learning.add(last + 1)
            nursery.start_soon(self._learn_next, session, last + 1)

    async def _learn_next(self, session: Session, epoch: int) -> None:
        """The engine computes it since a reader is in the second half of the one before."""
        try:
            await self._learn(session, epoch)
        except StreamingError as error:
            log.warning("no order of epoch %d of %s: %s", epoch, self._name, error)
        finally:
            self._learning.discard(epoch)

    async def _search(self, session: Session) -> None:
        """Look for readers that are not where they were: in the orders known, then in other epochs."""
        await self._find()
        if not self._follower.is_lost or trio.current_time() < self._rest_until:
            return
        known = self._follower.epochs
        self._tried += [epoch for epoch in known if epoch not in self._tried]
        candidates = [self._tried[-1] + 1, *range(EPOCHS)]
        following = next((epoch for epoch in candidates if epoch not in self._tried), None)
        if following is None or len(self._tried) > EPOCHS:
            log.warning("no reader of %s reads in the order that --order says", self._name)
            self._tried.clear()
            self._rest_until = trio.current_time() + self._rest
            self._rest *= 2
            return
        for epoch in known:
            self._follower.forget(epoch)
        self._told.clear()
        await self._begin(session, following)
        await self._find(patiently=False)
        self._something.set()  # there may be more epochs to look in

    async def _find(self, *, patiently: bool = True) -> None:
        for thread, opened in self._follower.lost(patiently=patiently).items():
            spot = await trio.to_thread.run_sync(self._follower.find, opened)
            if spot is None:
                self._follower.missed(thread)
            else:
                self._follower.place(thread, spot, opened)

    def to_json(self) -> dict[str, Any]:
        """What the status of the mount shows."""
        return {"job": self._name, "epochs": self._follower.epochs, "readers_followed": len(self._follower.spots)}
