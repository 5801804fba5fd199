"""The orderer: a child of the engine that computes the order of one epoch into a memfd, and ends.

`python -m mdsfs.engine.planning.orderer HINT ORDER EPOCH DROP MEMORY LARGEST`: descriptors of the hint (every stream
with its shards' sizes) and of the memfd; bytes of memory beside what the interpreter has; bytes that the order may
have. One line on stdout: its shape, or an error. When stdin ends the engine is gone, and so is this process.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import warnings
from typing import TYPE_CHECKING

import numpy as np

from streaming.engine.hint import decode, spec_of
from streaming.engine.sealed import map_sealed, seal, write_all
from streaming.order.epoch import ranks_order
from streaming.order.world import World

if TYPE_CHECKING:
    from streaming.engine.hint import Hint

__all__ = ["main", "write_order"]

MAX_HINT = 1 << 30
# A training process waits for nobody's order of tomorrow.
NICE = 5


def main(hint_fd: int, order_fd: int, epoch: int, drop: int, memory: int, largest: int) -> None:
    """Compute, write, seal, say the shape."""
    hint = decode(map_sealed(hint_fd, MAX_HINT))
    _limit(memory)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the readers' own business: the engine has nobody to tell
        shape = write_order(hint, order_fd, epoch, drop, largest)
    print(json.dumps({"shape": shape}), flush=True)


def write_order(hint: Hint, fd: int, epoch: int, drop: int, largest: int) -> tuple[int, ...]:
    """Write the order of a hint that has the sizes of all its shards, and seal it: its shape.

    Raises ValueError, KeyError or MemoryError for what can't be computed, or takes more than `largest` bytes.
    """
    spec = spec_of(hint, [each.sizes for each in hint.streams if each.sizes is not None])
    world = hint.world
    ranks = range(world.first_rank, world.first_rank + world.local_ranks)
    all_of_them = World(world.nodes, world.ranks_per_node, world.workers, 0)
    written, shape = 0, (0, 0, 0)
    for part in ranks_order(spec, all_of_them, epoch, drop, ranks):
        written += part.nbytes
        if written > largest:
            raise ValueError(f"an order of {written} bytes, expected at most {largest}")
        data = np.ascontiguousarray(part)
        shape = data.shape
        if data.size:
            write_all(fd, [data.reshape(-1).view(np.uint8).data])
    seal(fd)
    return world.local_ranks, *shape


def _limit(memory: int) -> None:
    with open("/proc/self/statm") as statm:
        now = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + memory, now + memory))


def _end_with_engine() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_engine, daemon=True).start()
    os.nice(NICE)
    try:
        main(*map(int, sys.argv[1:]))
    except Exception as error:  # whatever a hint leads to is the hint's fault, and told to the one who sent it
        print(json.dumps({"error": f"{type(error).__name__}: {error}"[:1000]}), flush=True)
    os._exit(0)
