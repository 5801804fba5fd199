"""Reading, writing and ordering, beside mosaicml-streaming 0.13.0: same files, same run, warm, interleaved."""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import machine
import numpy as np

from streaming import MDSWriter

ROOT = Path(__file__).resolve().parents[2]
CHILD = Path(__file__).with_name("reader_child.py")


class Contestant:
    """A process that runs tasks with one of the two libraries."""

    def __init__(self, name: str, python: Path, path: str | None) -> None:
        self.name = name
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        if path:
            environment["PYTHONPATH"] = path
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in close()
        self.process = subprocess.Popen(
            [str(python), str(CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment,
            cwd=tempfile.gettempdir(),
        )

    def run(self, task: str, **arguments: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"task": task, **arguments}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": "the process ended"}
        if "error" in answer:
            self.log.seek(0)
            raise SystemExit(f"bench: {self.name}, {task}: {answer['error']}\n{self.log.read()[-2000:]}")
        return answer["value"]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self.log.close()


def write_dataset(folder: Path, samples: int, size: int) -> str:
    rng = np.random.default_rng(5)
    with MDSWriter(columns={"id": "int", "name": "str", "data": "bytes"}, out=str(folder)) as writer:
        for number in range(samples):
            writer.write({"id": number, "name": f"sample-{number}", "data": rng.bytes(size)})
    for path in folder.iterdir():
        path.read_bytes()  # warm
    return str(folder)


def import_time() -> tuple[float, float]:
    """Median ms of `import streaming` beyond the interpreter's own start, and whether torch came along (0 or 1)."""

    def once(statement: str) -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", statement], check=True, cwd=ROOT)
        return time.perf_counter() - started

    bare = statistics.median(once("pass") for _ in range(7))
    ours = statistics.median(once("import streaming") for _ in range(7))
    done = subprocess.run(
        [sys.executable, "-c", "import streaming, sys; sys.exit('torch' in sys.modules)"], cwd=ROOT, check=False
    )
    return (ours - bare) * 1e3, float(done.returncode)


def million_shards(folder: Path) -> tuple[float, float]:
    """Seconds and USS bytes of opening a dataset of 1,000,000 shards whose tables the host already has."""
    import scale  # the writer of big indexes, shared with `scripts/bench scale`

    scale.write_index(folder, 1_000_000)
    statement = (
        "import sys, time, json, os\n"
        "from streaming import LocalDataset\n"
        "t = time.perf_counter(); d = LocalDataset(sys.argv[1]); n = len(d); t = time.perf_counter() - t\n"
        "uss = sum(int(l.split()[1]) for l in open('/proc/self/smaps_rollup') if l.startswith('Private_')) * 1024\n"
        "print(json.dumps([t, uss, n]))"
    )
    values = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", statement, str(folder)],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "XDG_CACHE_HOME": str(folder.with_name("tables-of-the-million"))},
        )
        values.append(json.loads(done.stdout))
    return min(value[0] for value in values[1:]), min(value[1] for value in values[1:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds (default: %(default)s)")
    parser.add_argument("--only", help="comma list of figures, by the start of their names")
    parser.add_argument("--json", help="write the measurements here")
    options = parser.parse_args()
    subprocess.run([str(ROOT / "scripts" / "peer")], check=True)
    described = machine.description()
    print(json.dumps(described))
    home = Path(tempfile.mkdtemp(prefix="mdsfs-bench-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    results = machine.Results()
    verdicts: list[tuple[str, float, float, bool]] = []
    ours = Contestant("ours", Path(sys.executable), str(ROOT))
    peer = Contestant("mosaicml-streaming", ROOT / ".peer" / "bin" / "python", None)
    try:
        kb32, kb4 = write_dataset(home / "kb32", 20_000, 32 << 10), write_dataset(home / "kb4", 60_000, 4 << 10)
        kb75 = write_dataset(home / "kb75", 6_000, 75 << 10)
        # figure, bar, task of both, its arguments, arguments that only ours takes
        duels: list[tuple[str, float, str, dict[str, Any], dict[str, Any]]] = [
            ("ds[i]", 5, "getitem", {"path": kb32, "count": 30_000}, {}),
            ("ds[i] zero-copy", 12, "getitem", {"path": kb32, "count": 30_000}, {"zero_copy": True}),
            ("iterate B=32", 15, "iterate", {"path": kb32, "batch_size": 32, "count": 15_000}, {}),
            ("iterate B=1", 20, "iterate", {"path": kb32, "batch_size": 1, "count": 4_000}, {}),
            (
                "loader 0",
                10,
                "loader",
                {"path": kb32, "batch_size": 32, "workers": 0, "count": 12_000, "collate": False},
                {},
            ),
            (
                "loader 2",
                5,
                "loader",
                {"path": kb32, "batch_size": 32, "workers": 2, "count": 12_000, "collate": False},
                {},
            ),
            (
                "loader 2 own collate",
                1.2,
                "loader",
                {"path": kb32, "batch_size": 32, "workers": 2, "count": 12_000, "collate": True},
                {},
            ),
            ("writer", 2, "write", {"count": 10_000, "size": 32 << 10}, {}),
        ]
        # name, files, batch size, samples, into the memory of the batch before
        gathers: list[tuple[str, str, int, int, bool]] = [
            ("load_batch 75 KB, B=32", kb75, 32, 24_000, True),
            ("load_batch 75 KB, B=256", kb75, 256, 24_000, True),
            ("load_batch 4 KB, B=256", kb4, 256, 200_000, False),
        ]
        wanted = options.only.split(",") if options.only else None

        def chosen(name: str) -> bool:
            return wanted is None or any(name.startswith(prefix) for prefix in wanted)

        for _ in range(options.rounds):
            for name, _bar, task, arguments, extra in duels:
                if chosen(name):
                    results.add(name, "ours /s", ours.run(task, **arguments, **extra))
                    results.add(name, "peer /s", peer.run(task, **arguments))
            if chosen("load_batch"):
                for name, path, size, count, reuse in gathers:
                    rate = ours.run("gather", path=path, batch_size=size, count=count, reuse=reuse)
                    results.add(name, "ours /s", rate)
        for name, bar, *_ in duels:
            mine, theirs = results.median(name, "ours /s"), results.median(name, "peer /s")
            if mine and theirs:
                verdicts.append((f"{name}, ours / peer", mine / theirs, bar, True))
        if chosen("load_batch"):
            for name, *_ in gathers[:2]:
                rate = (results.median(name, "ours /s") or 0) * (75 << 10) / machine.memcpy_rate()
                verdicts.append((f"{name} / memcpy", rate, 0.7, True))
            small = results.median(gathers[2][0], "ours /s") or 0
            verdicts.append((f"{gathers[2][0]}, million samples/s", small / 1e6, 1.0, True))
        if chosen("order"):
            fresh = [
                (name, python, path)
                for name, python, path in (
                    ("ours", sys.executable, str(ROOT)),
                    ("peer", str(ROOT / ".peer/bin/python"), None),
                )
            ]
            for _ in range(options.rounds):
                for name, python, path in fresh:  # a fresh process each time: peak memory is what is compared
                    runner = Contestant(name, Path(python), path)
                    seconds, extra_bytes = runner.run("order", samples=10_000_000)
                    runner.close()
                    results.add("order of 10 M samples", f"{name} s", seconds)
                    results.add("order of 10 M samples", f"{name} MB", extra_bytes / 1e6)
            for unit in ("s", "MB"):
                mine = results.median("order of 10 M samples", f"ours {unit}") or 0
                theirs = results.median("order of 10 M samples", f"peer {unit}") or 1
                verdicts.append((f"order of 10 M samples, {unit}, ours / peer", mine / theirs, 1.0, False))
        if chosen("import"):
            milliseconds, torch_came = import_time()
            verdicts.append(("import streaming, ms", milliseconds, 150, False))
            verdicts.append(("import streaming brings torch", torch_came, 0, False))
        if chosen("open"):
            seconds, private = million_shards(home / "million")
            verdicts.append(("open 1,000,000 shards, s", seconds, 2.0, False))
            verdicts.append(("open 1,000,000 shards, private MB", private / 1e6, 200, False))
    finally:
        ours.close()
        peer.close()
        shutil.rmtree(home, ignore_errors=True)
    results.notes.append(
        f"peak memory of this driver {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB"
    )
    return results.finish(options.json, described, verdicts)


if __name__ == "__main__":
    sys.exit(main())
