"""A reader process of the bound test: random reads, each compared with the source; exit status 1 at the first wrong
byte.

    bound_reader.py pread|samples MOUNTED SOURCE SEED SECONDS [fork]
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path

from streaming import LocalDataset

SIZE = 32 * 1024


def read_files(mounted: Path, source: Path, draw: random.Random, end: float) -> int:
    """Random ranges by pread; how many."""
    names = sorted(path.name for path in source.glob("shard.*"))
    pairs = [(os.open(mounted / name, os.O_RDONLY), os.open(source / name, os.O_RDONLY)) for name in names]
    count = 0
    while time.monotonic() < end:
        got, want = draw.choice(pairs)
        at = draw.randrange(os.fstat(want).st_size)
        assert os.pread(got, SIZE, at) == os.pread(want, SIZE, at), f"wrong bytes at {at}"
        count += 1
    return count


def read_samples(mounted: Path, source: Path, draw: random.Random, end: float, fork: bool) -> int:
    """Random samples through the library; how many."""
    dataset, truth = LocalDataset(str(mounted)), LocalDataset(str(source))
    assert type(dataset._shards.folder).__name__ == "EngineFolder", "the engine was not reached"
    count = 0
    while time.monotonic() < end:
        number = draw.randrange(len(truth))
        assert dataset[number] == truth[number], f"wrong sample {number}"
        count += 1
        if fork and count == 50:
            child = os.fork()
            if not child:
                number = draw.randrange(len(truth))
                os._exit(0 if dataset[number] == truth[number] else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "the forked child read something else"
    return count


def main() -> None:
    kind, mounted, source, seed, seconds, *rest = sys.argv[1:]
    draw, end = random.Random(int(seed)), time.monotonic() + float(seconds)
    if kind == "pread":
        count = read_files(Path(mounted), Path(source), draw, end)
    else:
        count = read_samples(Path(mounted), Path(source), draw, end, "fork" in rest)
    print(count)


if __name__ == "__main__":
    main()
