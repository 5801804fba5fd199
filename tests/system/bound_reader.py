"""A reader process of the bound test: random reads until a file appears, each compared with the source; exit status 1
at the first wrong byte.

    bound_reader.py pread|samples MOUNTED SOURCE SEED END [fork]
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

from streaming import LocalDataset

SIZE = 32 * 1024
# Samples of a reader before it forks; every one reads more than that.
FORKED_AT = 50


def read_files(mounted: Path, source: Path, draw: random.Random, end: Path) -> int:
    """Random ranges by pread; how many."""
    names = sorted(path.name for path in source.glob("shard.*"))
    pairs = [(os.open(mounted / name, os.O_RDONLY), os.open(source / name, os.O_RDONLY)) for name in names]
    count = 0
    while not count or not end.exists():
        got, want = draw.choice(pairs)
        at = draw.randrange(os.fstat(want).st_size)
        assert os.pread(got, SIZE, at) == os.pread(want, SIZE, at), f"wrong bytes at {at}"
        count += 1
    return count


def read_samples(mounted: Path, source: Path, draw: random.Random, end: Path, fork: bool) -> int:
    """Random samples through the library; how many."""
    dataset, truth = LocalDataset(str(mounted)), LocalDataset(str(source))
    assert type(dataset._shards.folder).__name__ == "EngineFolder", "the engine was not reached"
    count = 0
    while count <= FORKED_AT or not end.exists():
        number = draw.randrange(len(truth))
        assert dataset[number] == truth[number], f"wrong sample {number}"
        count += 1
        if fork and count == FORKED_AT:
            child = os.fork()
            if not child:
                number = draw.randrange(len(truth))
                os._exit(0 if dataset[number] == truth[number] else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "the forked child read something else"
    return count


def main() -> None:
    kind, mounted, source, seed, end, *rest = sys.argv[1:]
    draw = random.Random(int(seed))
    if kind == "pread":
        count = read_files(Path(mounted), Path(source), draw, Path(end))
    else:
        count = read_samples(Path(mounted), Path(source), draw, Path(end), "fork" in rest)
    print(count)


if __name__ == "__main__":
    main()
