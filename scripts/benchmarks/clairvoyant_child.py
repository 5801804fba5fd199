"""One contestant of `scripts/bench clairvoyant`: trains, in pretence, under whichever `streaming` it imports.

A line of JSON in ({"task", ...arguments}), a line of JSON out ({"value": …} or {"error": "…"}). Every sample that comes
out is checked against what was written.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
import traceback
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

warnings.simplefilter("ignore")


class Run:
    """One dataset object, and the epochs that were read from it."""

    def __init__(self, batch_size: int, workers: int, **arguments: Any) -> None:
        from streaming import StreamingDataset

        self.batch_size, self.workers = batch_size, workers
        self.dataset = StreamingDataset(batch_size=batch_size, **arguments)
        self.iterator: Iterator[Any] | None = None

    def batches(self) -> Iterator[list[Any]]:
        """Lists of samples: from this process, or from the workers of a DataLoader."""
        if self.workers:
            from streaming import StreamingDataLoader

            loader = StreamingDataLoader(
                self.dataset, batch_size=self.batch_size, num_workers=self.workers, collate_fn=keep
            )
            yield from loader
            return
        batch: list[Any] = []
        for sample in self.dataset:
            batch.append(sample)
            if len(batch) == self.batch_size:
                yield batch
                batch = []
        if batch:
            yield batch

    def epoch(self, step: float, most: int | None = None, resume: dict[str, Any] | None = None) -> dict[str, Any]:
        """Read an epoch, or its first `most` batches, computing for `step` seconds after each.

        first: seconds from `next()` to the first batch; waits: seconds that each batch was waited for.
        """
        if resume is not None:
            self.dataset.load_state_dict(resume)
        waits: list[float] = []
        samples, delivered, ids = 0, 0, hashlib.blake2s()
        clock = time.perf_counter
        iterator = self.batches()
        began = asked = clock()
        for batch in iterator:
            waits.append(clock() - asked)
            for sample in batch:
                check(sample)
                delivered += len(sample["data"])
                ids.update(sample["id"].to_bytes(8, "little"))
            samples += len(batch)
            if len(waits) == most:
                break
            if step:
                time.sleep(max(0.0, step - (clock() - asked - waits[-1])))
            asked = clock()
        wall = clock() - began
        return {"waits": waits, "wall": wall, "samples": samples, "delivered": delivered, "ids": ids.hexdigest()}


def keep(samples: list[Any]) -> list[Any]:
    return samples


def check(sample: dict[str, Any]) -> None:
    """The first and the last eight bytes of the data are the sample's id: a byte out of place shows."""
    mark = sample["id"].to_bytes(8, "little")
    data = sample["data"]
    if data[:8] != mark or data[-8:] != mark:
        raise ValueError(f"sample {sample['id']} has another sample's bytes")


def main() -> None:
    run: Run | None = None
    for line in sys.stdin:
        request = json.loads(line)
        task = request.pop("task")
        try:
            if task == "open":
                started = time.perf_counter()
                run = Run(**request)
                value: Any = time.perf_counter() - started
            else:
                assert run is not None, "nothing is open"
                value = run.epoch(**request)
            print(json.dumps({"value": value}), flush=True)
        except Exception as error:
            traceback.print_exc()
            print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)


if __name__ == "__main__":
    main()
