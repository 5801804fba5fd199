"""One contestant of `scripts/bench reader`: runs tasks under whichever `streaming` its interpreter imports.

A line of JSON in ({"task", ...arguments}), a line of JSON out ({"value": …} or {"error": "…"}). It lives as long as its
input, so that contestants can be interleaved while imports and page tables stay warm.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from typing import Any

warnings.simplefilter("ignore")


def clock(count: int, started: float) -> float:
    return count / (time.perf_counter() - started)


def getitem(path: str, count: int, zero_copy: bool = False) -> float:
    """Random `ds[i]` per second."""
    from streaming import StreamingDataset

    arguments: dict[str, Any] = {"zero_copy": True} if zero_copy else {}
    dataset = StreamingDataset(local=path, batch_size=32, **arguments)
    size = dataset.num_samples
    rng = random.Random(1)
    order = [rng.randrange(size) for _ in range(count)]
    for number in order[:500]:
        dataset[number]
    started = time.perf_counter()
    for number in order:
        dataset[number]
    return clock(count, started)


def iterate(path: str, batch_size: int, count: int) -> float:
    """Samples per second of `for sample in dataset`, default shuffle."""
    from streaming import StreamingDataset

    dataset = StreamingDataset(local=path, shuffle=True, batch_size=batch_size)
    seen, started = 0, 0.0
    for _ in dataset:
        if not seen:
            started = time.perf_counter()  # the first sample is timed by other tasks
        seen += 1
        if seen > count:
            break
    return clock(seen - 1, started)


def loader(path: str, batch_size: int, workers: int, count: int, collate: bool) -> float:
    """Samples per second through StreamingDataLoader; `collate`: a user's function instead of torch's default."""
    from streaming import StreamingDataLoader, StreamingDataset

    dataset = StreamingDataset(local=path, shuffle=True, batch_size=batch_size)
    arguments: dict[str, Any] = {"collate_fn": keep} if collate else {}
    batches = StreamingDataLoader(dataset, batch_size=batch_size, num_workers=workers, **arguments)
    seen, started, warm = 0, 0.0, 0
    for batch in batches:
        if not started and seen >= 8 * batch_size:
            started, warm = time.perf_counter(), seen
        seen += len(batch["id"] if isinstance(batch, dict) else batch)
        if seen - warm > count and started:
            break
    return clock(seen - warm, started)


def keep(samples: list[Any]) -> list[Any]:
    return samples


def gather(path: str, batch_size: int, count: int, reuse: bool) -> float:
    """Samples per second of `load_batch` (ours alone); `reuse`: into the memory of the batch before."""
    import numpy as np

    from streaming import StreamingDataset

    dataset = StreamingDataset(local=path, batch_size=batch_size)
    order = np.random.default_rng(1).integers(0, dataset.num_samples, count)
    batches = [order[at : at + batch_size] for at in range(0, count - batch_size + 1, batch_size)]
    out: Any = None
    for ids in batches:  # every page of the maps has been touched
        out = dataset.load_batch(ids, columns=["data"], out=out if reuse else None)
    started = time.perf_counter()
    for ids in batches:
        out = dataset.load_batch(ids, columns=["data"], out=out if reuse else None)
    return clock(len(batches) * batch_size, started)


def write(count: int, size: int) -> float:
    """Samples per second of MDSWriter."""
    import numpy as np

    from streaming import MDSWriter

    folder = tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    data = np.random.default_rng(1).bytes(size)
    try:
        started = time.perf_counter()
        with MDSWriter(columns={"id": "int", "name": "str", "data": "bytes"}, out=folder + "/out") as writer:
            for number in range(count):
                writer.write({"id": number, "name": f"sample-{number}", "data": data})
        return clock(count, started)
    finally:
        shutil.rmtree(folder)


def order(samples: int) -> list[float]:
    """Seconds and extra peak bytes of the epoch order of one rank: default shuffle, 2,000 samples a shard."""
    import numpy as np

    from streaming.base.partition import get_partitions
    from streaming.base.shuffle import get_shuffle

    sizes = np.full(samples // 2000, 2000, np.int64)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    ids = get_partitions("relaxed", samples, 1, 1, 1, 1, 32, 0, 1)
    table = get_shuffle("py1e", sizes, 1, 9176, 0, 4_000_000)
    np.where(ids != -1, table[ids], -1)
    elapsed = time.perf_counter() - started
    return [elapsed, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024.0]


TASKS = {task.__name__: task for task in (getitem, iterate, loader, gather, write, order)}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")  # what a library prints must not end up among the answers
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"value": TASKS[request.pop("task")](**request)}
        except Exception as error:  # any failure of a contestant is a result to report, not the end of the run
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
