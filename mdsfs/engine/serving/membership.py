"""One connection's part in jobs: reads its hints, numbers the jobs for it, and lets go of all of them at its end."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import trio

from streaming.engine.hint import decode
from streaming.errors import EngineError, ProtocolError, ReadTimeoutError, StreamingError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streaming.engine.hint import Hint, HintedStream

    from ..cache.dataset import Dataset
    from ..planning.hints import Hints, Local, Member
    from ..planning.orders import Order

__all__ = ["Begun", "Membership"]

# Up to here a document is read at once; arrays of millions would keep the others waiting.
AT_ONCE = 1 << 17


@dataclass(frozen=True, slots=True)
class Begun:
    """An epoch that a reader begins: samples of the whole world that are behind it, and [rank, worker, batch] of its
    lanes."""

    epoch: int
    drop: int
    places: Sequence[tuple[int, int, int]]


class Membership:
    """The jobs of one connection, by the numbers that it knows them by."""

    def __init__(self, hints: Hints) -> None:
        self._hints = hints
        self._members: dict[int, Member] = {}
        self._last = 0

    def __repr__(self) -> str:
        return f"Membership({list(self._members.values())})"

    async def hint(
        self,
        document: memoryview,
        datasets: Mapping[int, tuple[Dataset, Local | None]],
        begun: Begun,
        pid: int,
        *,
        by_pages: bool = False,
    ) -> tuple[dict[str, Any], list[int]]:
        """Take part in a job, from this epoch on: the answer, with the order's descriptor if the order is here.

        `by_pages`: what is read are pages of files, not samples.

        Raises ProtocolError or EngineError for a hint that is not followed, which the status shows then.
        """
        try:
            if len(document) <= AT_ONCE:
                hint, highest = _read(document)
            else:
                hint, highest = await trio.to_thread.run_sync(_read, document)
            opened = [_named(datasets, each.dataset) for each in hint.streams]
            if highest >= sum(_samples(each, dataset) for each, (dataset, _) in zip(hint.streams, opened, strict=True)):
                raise ProtocolError(f"ids: {highest} is the id of no sample")
            member = self._join(hint, opened, begun, pid)
            member.job.by_pages |= by_pages
        except StreamingError as error:
            self._hints.refuse(pid, error)
            raise
        number = next(number for number, its in self._members.items() if its is member)
        told: dict[str, Any] = {"job": number, "planned": self._hints.planner is not None}
        order = self._hints.ready(member, begun.epoch) if hint.numpy == np.__version__ else None
        if order is None or order.fd is None:
            return told, []
        return {**told, **_shape(order)}, [os.dup(order.fd)]

    def _join(
        self, hint: Hint, opened: Sequence[tuple[Dataset | None, Local | None]], begun: Begun, pid: int
    ) -> Member:
        datasets = [dataset for dataset, _ in opened]
        locals_ = [local for _, local in opened]
        member = self._hints.join(hint, datasets, locals_, pid, self._members.values())
        if not any(its is member for its in self._members.values()):
            # a reader that tells something else of its job has left the one before
            for number, its in list(self._members.items()):
                if its.job.hint.job == hint.job:
                    self.retract(number)
            self._last += 1
            self._members[self._last] = member
        member.numpy = hint.numpy
        self._hints.begin(member, begun.epoch, begun.drop, begun.places, hint)
        return member

    async def order(self, number: int, epoch: int, patience: float) -> tuple[dict[str, Any], list[int]]:
        """The order of an epoch that was begun; waits for it."""
        member = self._member(number)
        if member.numpy != np.__version__:
            raise EngineError(
                f"this engine's numpy is {np.__version__}, the reader's {member.numpy}: orders may differ"
            )
        with trio.move_on_after(patience):
            order = await self._hints.order(member, epoch)
            if order.fd is None:
                raise EngineError("the order of this job is what its readers have published")
            return _shape(order), [os.dup(order.fd)]
        raise ReadTimeoutError(f"the order of epoch {epoch} was not computed within {patience:g} s")

    def move(self, number: int, epoch: int, places: Sequence[tuple[int, int, int]]) -> None:
        """The reader has come to these batches."""
        self._hints.move(self._member(number), epoch, places)

    def retract(self, number: int) -> None:
        """The reader does not read on."""
        member = self._member(number)
        del self._members[number]
        self._hints.leave(member)

    def end(self) -> None:
        """The connection has ended."""
        for number in list(self._members):
            self.retract(number)

    def _member(self, number: int) -> Member:
        member = self._members.get(number)
        if member is None:
            raise ProtocolError(f"job: {number} is not hinted on this connection")
        return member


def _read(document: memoryview) -> tuple[Hint, int]:
    """The hint, and the highest of its ids."""
    hint = decode(document)
    if hint.ids is None:
        return hint, -1
    if hint.ids.min() < -1:
        raise ProtocolError("ids: expected -1, or sample ids from 0 on")
    return hint, int(hint.ids.max())


def _samples(stream: HintedStream, dataset: Dataset | None) -> int:
    if stream.sizes is not None:
        return int(stream.sizes.sum())
    return dataset.tables.samples if dataset is not None else 0


def _named(
    datasets: Mapping[int, tuple[Dataset, Local | None]], number: int | None
) -> tuple[Dataset | None, Local | None]:
    if number is None:
        return None, None
    if number not in datasets:
        raise ProtocolError(f"dataset: {number} is not open on this connection")
    return datasets[number]


def _shape(order: Order) -> dict[str, Any]:
    return {"shape": list(order.array.shape)}
