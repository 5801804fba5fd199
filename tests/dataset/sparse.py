"""Datasets of any size that take hardly any room: heads of shards are written, samples are holes."""

from __future__ import annotations

import json
import os
import struct
from typing import TYPE_CHECKING

import numpy as np

from streaming.mds.index import dump_index
from streaming.mds.shards import FileInfo, Schema, ShardInfo

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["private_bytes", "resident_bytes", "write_sparse"]


def write_sparse(folder: Path, total: int, sample: int, shard: int) -> int:
    """About `total` bytes of samples of one `uint8` array of `sample` bytes, all zeros; the number of samples."""
    folder.mkdir(parents=True)
    encoding = f"ndarray:uint8:{sample}"
    schema = Schema("mds", ("x",), (encoding,), (sample,))
    config = json.dumps(schema.to_json() | {"compression": None, "hashes": [], "size_limit": None, "version": 2})
    count = max(shard // sample, 1)
    head = 4 + 4 * (count + 1) + len(config)
    offsets = np.arange(head, head + (count + 1) * sample, sample, dtype=np.uint32)
    infos = []
    for number in range(max(total // (count * sample), 1)):
        name = f"shard.{number:05}.mds"
        with open(folder / name, "wb") as file:
            file.write(struct.pack("<I", count) + offsets.tobytes() + config.encode())
            file.truncate(int(offsets[-1]))
        infos.append(ShardInfo(schema, count, None, (), None, FileInfo(name, int(offsets[-1]), {})))
    (folder / "index.json").write_bytes(dump_index(infos))
    return count * len(infos)


def resident_bytes() -> int:
    """RSS of this process: unlike USS it does not change when another process with the same pages ends."""
    with open("/proc/self/smaps_rollup") as rollup:
        return next(int(line.split()[1]) for line in rollup if line.startswith("Rss:")) * 1024


def private_bytes(pid: int | None = None) -> int:
    """USS of a process: memory that nobody else has mapped."""
    with open(f"/proc/{pid or os.getpid()}/smaps_rollup") as rollup:
        return sum(int(line.split()[1]) for line in rollup if line.startswith("Private_")) * 1024
