"""Workers, ranks and the engine are killed while a run goes on: what is resumed is the rest of the epoch, exactly."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import pytest

from streaming import StreamingDataset
from streaming.engine.client import EngineClient
from tests.mount.host import wait_for

from .samples import write

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = 320
GLOBAL_BATCH = 8

RANK = """
import json, os, sys
from streaming import StreamingDataLoader, StreamingDataset
remote, local, rank, world, workers, batch = *sys.argv[1:3], *map(int, sys.argv[3:])
dataset = StreamingDataset(
    remote=remote, local=local, shuffle=True, batch_size=batch, rank=rank, world_size=world, local_world_size=world
)
def named(samples):
    return os.getpid(), [sample["id"] for sample in samples]
loader = StreamingDataLoader(dataset, batch_size=batch, num_workers=workers, collate_fn=named)
state = json.loads(sys.stdin.readline())
if state:
    loader.load_state_dict(state)
for pid, ids in loader:
    loader.num_samples_yielded += len(ids) - 2  # the loader counts what a batch looks like: a pair
    print(json.dumps([pid, ids, loader.state_dict()]), flush=True)
    sys.stdin.readline()
"""


class Life:
    """One run of all ranks, in step with each other, until it ends or something kills it."""

    def __init__(self, source: Path, cache: Path, world: int, workers: int, state: Any) -> None:
        numbers = [(rank, world, workers, GLOBAL_BATCH // world) for rank in range(world)]
        self.ranks = [
            subprocess.Popen(
                [sys.executable, "-c", RANK, str(source), str(cache), *map(str, each)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for each in numbers
        ]
        self.workers: set[int] = set()
        self.state = state
        self._say(json.dumps(state))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for rank in self.ranks:
            rank.kill()
            rank.wait()
        for pid in self.workers - {rank.pid for rank in self.ranks}:
            with contextlib.suppress(ProcessLookupError):  # orphans look for their parent every five seconds
                os.kill(pid, signal.SIGKILL)
        for rank in self.ranks:
            for pipe in (rank.stdin, rank.stdout, rank.stderr):
                with contextlib.suppress(OSError):
                    pipe.close()  # type: ignore[union-attr]

    def _say(self, line: str) -> None:
        for rank in self.ranks:
            assert rank.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                rank.stdin.write(line + "\n")
                rank.stdin.flush()

    def step(self) -> list[int] | None:
        """The ids of the next global batch; None where not all ranks have given their part of it."""
        if self.workers:
            self._say("go")
        lines = [rank.stdout.readline() for rank in self.ranks]  # type: ignore[union-attr]
        if not all(lines):
            return None
        parts = [json.loads(line) for line in lines]
        self.workers |= {pid for pid, _, _ in parts}
        states = [state for _, _, state in parts]
        assert all(state == states[0] for state in states)
        self.state = states[0]
        return sorted(number for _, ids, _ in parts for number in ids)

    def kill(self, what: str, rng: random.Random, cache: Path) -> bool:
        """kill -9 of one of them; whether the run goes on."""
        if what == "engine":
            with EngineClient.connect(cache, client="cli") as client:
                pid = int(client.engine["pid"])
            ended = os.pidfd_open(pid)
            os.kill(pid, signal.SIGKILL)
            wait_for(ended)
            return True
        if what == "worker":
            os.kill(rng.choice(sorted(self.workers)), signal.SIGKILL)
            return True  # until its rank notices
        rng.choice(self.ranks).kill()
        return False


def expected(source: Path) -> list[list[int]]:
    """The global batches of an epoch that nothing disturbs."""
    dataset = StreamingDataset(local=str(source), shuffle=True, batch_size=GLOBAL_BATCH, num_canonical_nodes=1)
    ids = dataset.begin_epoch(1).reshape(-1, GLOBAL_BATCH)
    return [sorted(batch) for batch in ids.tolist()]


@pytest.mark.parametrize("seed", [1, 2])
def test_the_rest_is_exact(tmp_path: Path, cache: Path, seed: int) -> None:
    """Each life has other numbers of ranks and workers and goes on where the last complete step was."""
    source = Path(write(tmp_path / "source", (40,) * (SAMPLES // 40), compression="zstd"))
    rng = random.Random(seed)
    kinds = ["engine", "worker", "rank"]
    rng.shuffle(kinds)
    worlds = rng.sample([1, 1, 2], 3)
    seen: list[list[int]] = []
    state: Any = None
    ended = False
    for kind, world in zip([*kinds, None], [*worlds, 2], strict=True):
        workers = rng.choice([1, 2])
        with Life(source, cache, world, workers, state) as life:
            left = rng.randrange(2, 8)
            while (batch := life.step()) is not None:
                seen.append(batch)
                left -= 1
                if left == 0 and kind and not life.kill(kind, rng, cache):
                    break
                if kind == "engine" and left < -4:
                    break  # it went on; now everything is killed
            ended = kind is None and [rank.wait(60) for rank in life.ranks] == [0] * world
            state = life.state
    assert seen == expected(source)
    assert ended
