"""The orders of jobs' epochs: each computed once, a large one by a child, into a sealed memfd that everybody maps.

Owns what they may cost: the bytes of all of them together, the memory and the time of a child, and how many of those
run at once. Hints with the same arguments share one order, whoever sent them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import trio

from streaming.engine.hint import LARGEST, encode
from streaming.engine.sealed import map_sealed, new_memory, sealed_memory
from streaming.errors import EngineError, ReadTimeoutError

from ..child import environment
from .orderer import write_order

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from numpy.typing import NDArray

    from streaming.engine.hint import Hint

    from ..cache.dataset import Dataset

__all__ = ["Order", "Orders", "identity"]

log = logging.getLogger(__name__)

# Each takes a core, and at 10⁸ samples 4 GB.
CHILDREN = 2
# A child may take so long: its start on a busy host, and several times what the slowest algorithm needs a sample.
DEADLINE, DEADLINE_PER_SAMPLE = 30.0, 2e-6
# Bytes that computing takes beside the interpreter: measured 40 a sample, more where streams are drawn unevenly.
MEMORY, MEMORY_PER_SAMPLE = 256 << 20, 128
# Up to here the engine computes in a thread of its own: a child takes longer to start, and a first batch waits for it.
SMALL, SMALL_COUNT = 1 << 17, 1 << 12
# Of the host's memory: all orders together, and one child.
ORDERS_SHARE, CHILD_SHARE = 4, 2
# An epoch may draw samples so many times over; and so many of streams that other engines have.
REPEATS, MOST_FOREIGN = 64, 1 << 24


class Order:
    """One epoch's order of the ranks of this host."""

    def __init__(self, key: Hashable, array: NDArray[np.int64], fd: int | None) -> None:
        self.key = key
        self.array = array
        """int64 [ranks here][workers][batches][batch size], read-only."""
        self.fd = fd
        """A sealed memfd with the array; None for ids that a reader has published."""
        self.users = 1

    def __repr__(self) -> str:
        return f"Order({'×'.join(map(str, self.array.shape))}, {self.users} users)"


class Orders:
    """All orders that are here or being computed."""

    def __init__(self) -> None:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        self.budget = memory // ORDERS_SHARE
        self._child_memory = memory // CHILD_SHARE
        self.used = 0
        """Bytes of the orders that are here or on their way."""
        self._known: dict[Hashable, Order] = {}
        self._coming: dict[Hashable, trio.Event] = {}
        self._limiter = trio.CapacityLimiter(CHILDREN)

    def __repr__(self) -> str:
        return f"Orders({len(self._known)} here, {len(self._coming)} on their way, {self.used} bytes)"

    def check(self, hint: Hint, own: int, samples: int) -> None:
        """Refuse a hint of which the order is out of all proportion to the data: `own` samples of this engine's."""
        if hint.ids is not None:
            size, entries = hint.ids.size, hint.ids.size
        else:
            size, entries = _epoch_size(hint), _entries(hint)
        most = REPEATS * own + MOST_FOREIGN
        if size > most or samples > most or entries > LARGEST:
            raise EngineError(f"an order of {entries} samples over {samples}: more than {most} make no sense here")
        if entries * 8 > self.budget:
            raise EngineError(f"an order of {entries * 8} bytes: all orders may take {self.budget} on this host")

    def take_in(self, ids: NDArray[np.int64]) -> Order:
        """Ids that a reader has published, as an order. Raises EngineError where there is no room."""
        self._charge(ids.nbytes)
        return Order(None, ids, None)

    async def get(self, hint: Hint, datasets: Sequence[Dataset | None], epoch: int, drop: int) -> Order:
        """The order of an epoch after `drop` samples, computed if need be; every call needs a `release`.

        Raises EngineError, or ReadTimeoutError, where it can't be had.
        """
        key = identity(hint, datasets), epoch, drop
        while (found := self._known.get(key)) is None:
            if (event := self._coming.get(key)) is not None:
                await event.wait()
                continue
            event = self._coming[key] = trio.Event()
            try:
                async with self._limiter:
                    found = self._known[key] = await self._compute(key, hint, datasets, epoch, drop)
                return found
            finally:
                del self._coming[key]
                event.set()
        found.users += 1
        return found

    def release(self, order: Order) -> None:
        """One user less; readers that have mapped it keep their maps."""
        order.users -= 1
        if order.users:
            return
        self.used -= order.array.nbytes
        if order.fd is not None:
            del self._known[order.key]
            os.close(order.fd)

    def _charge(self, size: int) -> None:
        if self.used + size > self.budget:
            raise EngineError(f"no room for an order of {size} bytes: {self.used} of {self.budget} are taken")
        self.used += size

    async def _compute(
        self, key: Hashable, hint: Hint, datasets: Sequence[Dataset | None], epoch: int, drop: int
    ) -> Order:
        size = _entries(hint) * 8
        self._charge(size)
        fd = new_memory("mdsfs-order")
        try:
            whole = _self_contained(hint, datasets)
            if _is_small(whole):
                shape = await trio.to_thread.run_sync(_compute_here, whole, fd, epoch, drop)
            else:
                shape = await self._run_child(whole, epoch, drop, fd)
            if any(side < 1 for side in shape) or len(shape) != 4:
                raise EngineError(f"an order of {shape}: there is nothing to read")
            array = np.frombuffer(map_sealed(fd, max(8 * int(np.prod(shape)), 8)), np.int64).reshape(shape)
            self.used += array.nbytes - size
        except BaseException:
            os.close(fd)
            self.used -= size
            raise
        return Order(key, array, fd)

    async def _run_child(self, hint: Hint, epoch: int, drop: int, fd: int) -> tuple[int, ...]:
        """Have the order written to `fd`, which is sealed afterwards; its shape."""
        samples = max(_epoch_size(hint), _entries(hint))
        memory = min(MEMORY + MEMORY_PER_SAMPLE * samples, self._child_memory)
        document = sealed_memory("mdsfs-hint", encode(hint))
        arguments = [str(each) for each in (document, fd, epoch, drop, memory, _entries(hint) * 16)]
        try:
            process = await trio.lowlevel.open_process(
                [sys.executable, "-m", "mdsfs.engine.planning.orderer", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment() | {"OPENBLAS_NUM_THREADS": "1"},
                pass_fds=(document, fd),
            )
        finally:
            os.close(document)
        assert process.stdin is not None
        assert process.stdout is not None
        said = b""
        try:
            with trio.fail_after(DEADLINE + DEADLINE_PER_SAMPLE * samples):
                async for piece in process.stdout:
                    said += piece
        except trio.TooSlowError:
            raise ReadTimeoutError(f"computing the order of {samples} samples took too long") from None
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.stdin.aclose()
                await process.stdout.aclose()
                await process.wait()
        try:
            answer = json.loads(said)
        except ValueError:
            raise EngineError("the child that computes orders ended without a word: see the engine's log") from None
        if "error" in answer:
            raise EngineError(str(answer["error"]))
        return tuple(int(side) for side in answer["shape"])


def _is_small(hint: Hint) -> bool:
    """Whether this order takes milliseconds whatever its arguments are: then it is not worth a process."""
    world, order = hint.world, hint.order
    side = world.nodes * world.ranks_per_node * world.workers * order["batch_size"]
    shards = sum(len(each.sizes) for each in hint.streams if each.sizes is not None)
    samples = sum(int(each.sizes.sum()) for each in hint.streams if each.sizes is not None)
    counts: int = max(order["canonical_nodes"], order["initial_nodes"] or 1, shards)
    if order["batching_method"] != "random" or order["block_size"] < SMALL_COUNT or counts > SMALL_COUNT:
        return False
    largest: int = max(_epoch_size(hint), samples, side, _entries(hint))
    return largest <= SMALL


def _compute_here(hint: Hint, fd: int, epoch: int, drop: int) -> tuple[int, ...]:
    """As the child does it, in a thread."""
    try:
        return write_order(hint, fd, epoch, drop, 16 * SMALL)
    except (ValueError, KeyError, ArithmeticError) as error:
        raise EngineError(f"{type(error).__name__}: {error}") from error


def _epoch_size(hint: Hint) -> int:
    return sum(each.choose for each in hint.streams)


def _entries(hint: Hint) -> int:
    """How many entries the array has about, of all ranks here: filled up to whole rounds of the workers."""
    world, batch = hint.world, int(hint.order.get("batch_size", 1))
    rounds = world.workers * batch
    of_rank = -(-_epoch_size(hint) // (world.nodes * world.ranks_per_node))
    return world.local_ranks * (-(-of_rank // rounds) + 1) * rounds


def identity(hint: Hint, datasets: Sequence[Dataset | None]) -> Hashable:
    """What hints of one order have in common."""
    streams = tuple(
        (each.choose, each.proportion, _digest(each.sizes) if dataset is None else dataset.number)
        for each, dataset in zip(hint.streams, datasets, strict=True)
    )
    order = "ids" if hint.ids is not None else tuple(sorted(hint.order.items()))
    return streams, order, hint.world


def _digest(sizes: NDArray[np.int64] | None) -> str:
    return hashlib.blake2s(b"" if sizes is None else sizes.tobytes()).hexdigest()


def _self_contained(hint: Hint, datasets: Sequence[Dataset | None]) -> Hint:
    """The hint with the shard sizes of every stream."""
    streams = tuple(
        each
        if dataset is None
        else dataclasses.replace(each, dataset=None, sizes=dataset.tables.shards["samples"].astype(np.int64))
        for each, dataset in zip(hint.streams, datasets, strict=True)
    )
    return dataclasses.replace(hint, streams=streams)
