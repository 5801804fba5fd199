"""An epoch over sparse files: private memory (USS) of every worker at the start, at its highest and at the end."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import machine

from streaming import StreamingDataLoader, StreamingDataset
from tests.dataset.sparse import private_bytes, write_sparse


def measured(samples: list[Any]) -> tuple[int, int, int]:
    """(pid, USS, samples) in the worker; every page of the samples is looked at."""
    for sample in samples:
        sample["x"][::4096].any()
    return os.getpid(), private_bytes(), len(samples)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gb", type=float, default=100, help="size of the dataset (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--sample-kb", type=int, default=1024, help="size of a sample (default: %(default)s)")
    parser.add_argument("--folder", help="where the sparse files go (default: the temporary directory)")
    parser.add_argument("--json", help="write the measurements here")
    options = parser.parse_args()
    described = machine.description()
    print(json.dumps(described))
    home = Path(tempfile.mkdtemp(prefix="mdsfs-bench-", dir=options.folder))
    results = machine.Results()
    try:
        samples = write_sparse(home / "sparse", int(options.gb * 1e9), options.sample_kb << 10, 64 << 20)
        dataset = StreamingDataset(local=str(home / "sparse"), batch_size=16, shuffle=True)
        loader = StreamingDataLoader(dataset, batch_size=16, num_workers=options.workers, collate_fn=measured)
        seen: dict[int, list[int]] = {}
        count, started = 0, time.perf_counter()
        for pid, private, many in loader:
            seen.setdefault(pid, []).append(private)
            count += many
        seconds = time.perf_counter() - started
    finally:
        shutil.rmtree(home, ignore_errors=True)
    for number, values in enumerate(seen.values()):
        tenth = max(len(values) // 10, 1)
        results.add(f"worker {number}", "first MB", values[0] / 1e6)
        results.add(f"worker {number}", "highest of the first tenth MB", max(values[:tenth]) / 1e6)
        results.add(f"worker {number}", "highest of the last tenth MB", max(values[-tenth:]) / 1e6)
        results.add(f"worker {number}", "highest MB", max(values) / 1e6)
    results.notes.append(
        f"{count} of {samples} samples in {seconds:.0f} s, {count * options.sample_kb / 1024 / seconds:.0f} MiB/s"
    )
    highest = max(max(values) for values in seen.values()) / 1e6
    return results.finish(options.json, described, [("highest private MB of a worker", highest, 600.0, False)])


if __name__ == "__main__":
    sys.exit(main())
