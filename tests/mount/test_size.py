"""An index of a hundred thousand shards: what it costs in memory and time."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING

import pytest

from mdsfs.mount.tree import ROOT, Dataset, build_tree
from streaming.mds.tables import load_tables, objects_tables

from .harness import why_not_mountable
from .host import Host

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SHARDS = 100_000
MIB = 1 << 20


def test_a_large_tree_costs_eight_bytes_a_file() -> None:
    """Building takes a second or so, finding a name microseconds, and the tree keeps one number per file."""
    rows = [(f"part{number % 7}/shard.{number:06d}.mds", "k", number, 0, None) for number in range(SHARDS)]
    tables = load_tables(b"".join(objects_tables(rows)))
    start = time.process_time()
    tree = build_tree([Dataset("", tables, None, 1)])
    assert time.process_time() - start < 20  # 0.4 s where this was written; in the square of the files it is minutes
    assert tree.file_count == SHARDS + 1
    assert tree._order.nbytes == 8 * SHARDS
    start = time.process_time()
    for number in range(0, SHARDS, 100):
        folder = tree.lookup(ROOT, b"part%d" % (number % 7))
        assert folder is not None
        inode = tree.lookup(folder, b"shard.%06d.mds" % number)
        assert inode is not None
        assert tree.node(inode).size == number
    assert time.process_time() - start < 4  # 0.08 s; looking through a folder each time is many seconds


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with Host(tmp_path) as host:
        yield host


def index(shards: int) -> bytes:
    """An index of that many compressed, hashed shards, none of which is there."""

    def file(number: int, name: str, size: int) -> dict[str, object]:
        return {"basename": name, "bytes": size, "hashes": {"sha1": f"{number:040x}"}}

    common = {"column_encodings": ["int"], "column_names": ["i"], "column_sizes": [8], "compression": "zstd:3"}
    common |= {"format": "mds", "hashes": ["sha1"], "samples": 1000, "size_limit": 1 << 26, "version": 2}
    rows = [
        {
            **common,
            "raw_data": file(number, f"shard.{number:05d}.mds", 67_000_000),
            "zip_data": file(number, f"shard.{number:05d}.mds.zstd", 30_000_000),
        }
        for number in range(shards)
    ]
    return json.dumps({"shards": rows, "version": 2}).encode()


def peak_memory(pid: int) -> int:
    """The most that a process ever had in memory."""
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))


@pytest.mark.slow
@pytest.mark.mounted
@pytest.mark.skipif(why_not_mountable() is not None, reason=str(why_not_mountable()))
def test_a_hundred_thousand_shards(host: Host, tmp_path: Path) -> None:
    """The mount stays below 200 MB and the engine below 300. How long it takes, scripts/bench scale says."""
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "index.json").write_bytes(index(SHARDS))
    mount = host.mounted(tmp_path / "large")
    assert len(os.listdir(mount)) == SHARDS + 2
    assert (mount / "shard.99999.mds").stat().st_size == 67_000_000
    status = host.status()
    assert peak_memory(status["mount"]["pid"]) < 200 * MIB
    assert peak_memory(status["engine"]["pid"]) < 300 * MIB
