"""What a process tells engines of the order in which it reads, and the order that it gets back from them.

Advice in both directions: without an engine, or where one is late or says no, a process computes its own order and
reads as well. Nothing here waits for an engine that is not there, runs a thread, or survives a fork: each process
says for itself what it reads.
"""

from __future__ import annotations

import itertools
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from streaming.cached import EngineFolder
from streaming.engine.hint import Hint, HintedStream, encode, order_of
from streaming.engine.sealed import map_sealed, sealed_memory
from streaming.errors import ProtocolError, StreamingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from streaming.engine.client import EngineClient, HintedOrder
    from streaming.engine.hint import HintWorld
    from streaming.order.spec import OrderSpec
    from streaming.reader import Shards

__all__ = ["INTERVAL", "Begun", "Hints", "Lane", "engines_of", "name_of_run"]

# Up to so many samples computing (0.3 s) is as fast as having it computed; where more processes than there are cores
# would do it at once, accordingly less.
OWN_SAMPLES = 1 << 20
# How long an engine may take to answer a hint, and to compute an order.
HINT_TIMEOUT = 5.0
ORDER_TIMEOUT, ORDER_TIMEOUT_PER_SAMPLE = 10.0, 1e-6
# Positions are told so often at most: at 1 GB/s that is 10 MB.
INTERVAL = 0.01
# So long what a reader guesses would only be in the way of a plan that is being made.
QUIET = 2.0

_numbers = itertools.count(1)


def name_of_run() -> str:
    """Names a dataset object: the same in all ranks of a run that make their datasets alike, another elsewhere.

    What launchers set says which run this is; without them each process is one.
    """
    known = [os.environ.get(name) for name in ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "MASTER_ADDR", "MASTER_PORT")]
    run = " ".join(each for each in known if each) if any(known) else f"pid {os.getpid()}"
    printable = "".join(each if each.isprintable() else "?" for each in run)
    return f"{printable[:150]} dataset {next(_numbers)}"


@dataclass(frozen=True)
class Begun:
    """An epoch that this process begins: the lanes (row of its rank on this host, worker) that it reads."""

    spec: OrderSpec
    world: HintWorld
    epoch: int
    drop: int
    rank: int
    workers: Sequence[int]


class Lane:
    """What one worker of a rank reads, one sample after the other."""

    STEP = 16  # samples between two looks at the clock

    def __init__(self, order: NDArray[np.int64]) -> None:
        """`order`: int64 [batches][batch size], -1 for none."""
        self.batches = int(order.shape[0])
        self._size = int(order.shape[1])
        flat = order.reshape(-1)
        count = int(np.count_nonzero(flat >= 0))
        self._places: NDArray[np.int64] | None = None
        if count < len(flat) and (flat[:count] < 0).any():  # gaps before the end
            self._places = np.flatnonzero(flat >= 0)
        self.ids: NDArray[np.int64] = flat[:count] if self._places is None else flat[self._places]
        self.stride = -(-self.STEP // self._size) * self._size

    def batch_at(self, at: int) -> int:
        """Which batch `ids[at]` is in."""
        place = at if self._places is None else int(self._places[at])
        return place // self._size


class _Engine:
    """One engine, and which of the dataset's streams it has. The first one's connection carries the hints."""

    def __init__(self, folders: dict[int, EngineFolder]) -> None:
        self._folders = folders
        self._leader = next(iter(folders.values()))
        self._client: EngineClient | None = None
        self._numbers: dict[int, int] = {}
        self._job = 0

    def hint(self, hint: Hint, epoch: int, drop: int, places: Sequence[tuple[int, int, int]]) -> HintedOrder | None:
        """Say it; the order, if the engine has it. Raises StreamingError."""
        client = self._connected()
        streams = tuple(
            HintedStream(each.choose, each.proportion, dataset=self._numbers[number])
            if number in self._numbers
            else each
            for number, each in enumerate(hint.streams)
        )
        document = Hint(hint.job, streams, hint.world, hint.order, hint.ids)
        fd = sealed_memory("streaming-hint", encode(document))
        try:
            answer = client.hint(fd, epoch, drop, places, HINT_TIMEOUT)
        finally:
            os.close(fd)
        self._job = answer.job
        self._keep_quiet(QUIET if answer.planned else 0)
        return answer.order

    def order(self, epoch: int, samples: int) -> HintedOrder:
        """The order of an epoch of so many samples, when it is computed. Raises StreamingError."""
        return self._connected().order(self._job, epoch, ORDER_TIMEOUT + ORDER_TIMEOUT_PER_SAMPLE * samples)

    def _connected(self) -> EngineClient:
        session = self._leader.try_session()
        if session.client is not self._client:
            self._client, self._numbers = session.client, {}
            for number, folder in self._folders.items():
                own = folder is self._leader
                self._numbers[number] = session.dataset if own else folder.door.open(session.client)
        return session.client

    def position(self, epoch: int, places: Sequence[tuple[int, int, int]]) -> bool:
        """Say where this process is; False where another engine has taken over, which has to be hinted anew."""
        if self._client is None:
            return True
        if (client := self._leader.client) is not self._client:
            return client.closed
        client.position(self._job, epoch, places)
        return True

    def forget(self) -> None:
        """The engine does not answer hints: everything is as without them."""
        self._client = None
        self._keep_quiet(0)

    def retract(self) -> None:
        """Nothing more is read."""
        if self._client is not None:
            self._client.retract(self._job)
        self.forget()

    def _keep_quiet(self, seconds: float) -> None:
        for folder in self._folders.values():
            folder.quiet_until = time.monotonic() + seconds


def engines_of(parts: Sequence[Shards]) -> list[_Engine]:
    """The engines that fetch a dataset's streams."""
    by_cache: dict[str, dict[int, EngineFolder]] = {}
    for number, part in enumerate(parts):
        if isinstance(folder := part.folder, EngineFolder):
            by_cache.setdefault(folder.cache_dir, {})[number] = folder
    return [_Engine(folders) for folders in by_cache.values()]


class Hints:
    """The hints of one dataset in one process."""

    def __init__(self, name: str, parts: Sequence[Shards]) -> None:
        self._name = name
        self._parts = parts
        self._samples = sum(part.samples for part in parts)
        self._engines = engines_of(parts)
        self._begun: Begun | None = None
        self._hint: Hint | None = None
        self._due = 0.0

    def __repr__(self) -> str:
        return f"Hints({self._name}, {len(self._engines)} engines)"

    def __bool__(self) -> bool:
        """Whether there is anybody to hint."""
        return bool(self._engines)

    def begin(self, begun: Begun) -> NDArray[np.int64] | None:
        """Say what this process is about to read; its rank's order if an engine has it, or will have it sooner than
        it could be computed here: int64 [workers][batches][batch size]."""
        if not self._engines:
            return None
        streams = tuple(
            HintedStream(stream.choose, stream.proportion, sizes=stream.shard_sizes) for stream in begun.spec.streams
        )
        self._begun = begun
        self._hint = Hint(self._name, streams, begun.world, order_of(begun.spec))
        places = [(begun.rank, worker, 0) for worker in begun.workers]
        orders = [self._tell(engine, places) for engine in self._engines]
        found = next((order for order in orders if order is not None), None)
        if found is None and begun.spec.epoch_size > _own_samples(begun):
            found = self._wait()
        return None if found is None else self._checked(found, begun)

    def _tell(self, engine: _Engine, places: Sequence[tuple[int, int, int]]) -> NDArray[np.int64] | None:
        assert self._begun is not None
        assert self._hint is not None
        try:
            order = engine.hint(self._hint, self._begun.epoch, self._begun.drop, places)
        except StreamingError:
            engine.forget()
            return None
        return None if order is None else _mapped(order)

    def _wait(self) -> NDArray[np.int64] | None:
        """The order of the first engine that computes it."""
        assert self._begun is not None
        for engine in self._engines:
            try:
                return _mapped(engine.order(self._begun.epoch, self._begun.spec.epoch_size))
            except StreamingError:
                engine.forget()
        return None

    def _checked(self, order: NDArray[np.int64], begun: Begun) -> NDArray[np.int64] | None:
        """This rank's part; None where it is no order of this dataset."""
        world = begun.world
        sides = (world.local_ranks, world.workers, begun.spec.batch_size)
        if order.ndim != 4 or (order.shape[0], order.shape[1], order.shape[3]) != sides or not order.size:
            return None
        mine: NDArray[np.int64] = order[begun.rank]
        return mine if mine.min() >= -1 and mine.max() < self._samples else None

    def finish(self, batches: int) -> None:
        """Say that this process's lanes are at the end of the epoch, which has so many batches for each."""
        if self._begun is not None:
            self.position([(worker, batches) for worker in self._begun.workers])

    def is_due(self) -> bool:
        """Whether it is time to say again where this process is."""
        return self._begun is not None and time.monotonic() >= self._due

    def position(self, places: Sequence[tuple[int, int]]) -> None:
        """Say which (worker, batch) comes next."""
        if (begun := self._begun) is None:
            return
        self._due = time.monotonic() + INTERVAL
        told = [(begun.rank, worker, batch) for worker, batch in places]
        for engine in self._engines:
            if not engine.position(begun.epoch, told):
                self._tell(engine, told)  # another engine has taken over


def _own_samples(begun: Begun) -> int:
    """Up to which size of an epoch each process computes its own order rather than wait for the engine's."""
    world = begun.world
    processes = world.local_ranks * world.workers // len(begun.workers)
    return OWN_SAMPLES // -(-processes // (os.cpu_count() or 1))


def _mapped(order: HintedOrder) -> NDArray[np.int64]:
    """Raises ProtocolError where it is not what it should be."""
    size = 8
    for side in order.shape:
        size *= max(side, 0)
    try:
        data = map_sealed(order.fd, max(size, 1))
    finally:
        os.close(order.fd)
    if len(data) != size:
        raise ProtocolError(f"an order of {len(data)} bytes, expected {size}")
    return np.frombuffer(data, np.int64).reshape(order.shape)
