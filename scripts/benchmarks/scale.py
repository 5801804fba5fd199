"""A dataset of 100,000 shards: how long the mount takes, and how much memory the mount and the engine use."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import machine

BIN = Path(sys.executable).parent


def write_index(folder: Path, shards: int) -> None:
    """An index of `shards` MDS shards of 64 MiB, written in pieces; of the shards themselves nothing exists."""
    folder.mkdir(parents=True)
    entry = {
        "column_encodings": ["bytes", "int"],
        "column_names": ["data", "id"],
        "column_sizes": [None, 8],
        "compression": None,
        "format": "mds",
        "hashes": [],
        "raw_data": {"basename": "@@", "bytes": 67_000_000, "hashes": {}},
        "samples": 1000,
        "size_limit": 1 << 26,
        "version": 2,
        "zip_data": None,
    }
    text = json.dumps(entry, sort_keys=True)
    with (folder / "index.json").open("w") as file:
        file.write('{"shards": [')
        for number in range(shards):
            file.write((", " if number else "") + text.replace("@@", f"shard.{number:05d}.mds"))
        file.write('], "version": 2}')


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=100_000, help="(default: %(default)s)")
    parser.add_argument("--json", help="write the measurements here")
    options = parser.parse_args()
    described = machine.description()
    print(json.dumps(described))
    home = Path(tempfile.mkdtemp(prefix="mdsfs-bench-"))
    results = machine.Results()
    mountpoint, cache = home / "mnt", home / "cache"
    mountpoint.mkdir()
    verdicts: list[tuple[str, float, float, bool]] = []
    try:
        write_index(home / "source", options.shards)
        for label in ("first mount", "tables are there"):
            started = time.perf_counter()
            command = [
                BIN / "mdsfs",
                "mount",
                home / "source",
                mountpoint,
                "--cache-dir",
                cache,
                "--cache-limit",
                "2gb",
            ]
            subprocess.run(command, check=True)
            results.add(label, "mount s", time.perf_counter() - started)
            started = time.perf_counter()
            listed = os.listdir(mountpoint)
            results.add(label, "listdir s", time.perf_counter() - started)
            started = time.perf_counter()
            total = sum(entry.stat().st_size for entry in os.scandir(mountpoint) if entry.is_file())
            results.add(label, "stat all s", time.perf_counter() - started)
            if len(listed) < options.shards or total < options.shards * 67_000_000:
                raise SystemExit(f"bench: {len(listed)} names, {total} bytes: something is missing")
            status = json.loads((mountpoint / ".mdsfs" / "status").read_text())
            results.add(label, "mount MB", machine.resident_bytes(status["mounts"][0]["pid"]) / 1e6)
            results.add(label, "engine MB", machine.resident_bytes(status["engine"]["pid"]) / 1e6)
            subprocess.run([BIN / "mdsfs", "umount", mountpoint, "--wait", "10"], check=True)
        subprocess.run([BIN / "mdsfs", "engine", "--cache-dir", cache, "--stop"], check=False, capture_output=True)
    finally:
        subprocess.run(["fusermount3", "-u", "-z", str(mountpoint)], check=False, capture_output=True)
        shutil.rmtree(home, ignore_errors=True)
    for label in results.values:
        for figure, bar in (("mount s", 4.0), ("mount MB", 200.0), ("engine MB", 300.0)):
            verdicts.append((f"{label}: {figure}", results.median(label, figure) or 0.0, bar, False))
    return results.finish(options.json, described, verdicts)


if __name__ == "__main__":
    sys.exit(main())
