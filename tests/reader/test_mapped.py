"""What a reader has in its page table before it looks at it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from streaming import LocalDataset, MDSWriter
from streaming import sources as sources_module

KIB = 1024


def write(folder: Path) -> Path:
    """One shard of 4 MiB; its path."""
    with MDSWriter(columns={"x": "bytes"}, out=str(folder)) as writer:
        for _ in range(64):
            writer.write({"x": os.urandom(64 * KIB)})
    return folder / "shard.00000.mds"


def mapped(path: Path) -> int:
    """Bytes of a file in this process's page table."""
    text = Path("/proc/self/smaps").read_text()
    entries = re.findall(rf"{re.escape(str(path))}\n(?:\w+: .*\n)*?Rss: +(\d+) kB", text)
    return KIB * sum(map(int, entries))


def test_a_small_dataset_is_mapped_at_once(tmp_path: Path) -> None:
    """As far as the kernel has it in memory, as it has what was just written."""
    shard = write(tmp_path / "a")
    with shard.open("rb") as file:
        try:
            os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT)
        except OSError as error:
            pytest.skip(f"this filesystem does not say what is in memory: {error.strerror}")
    dataset = LocalDataset(str(tmp_path / "a"))
    assert len(dataset[0]["x"]) == 64 * KIB
    assert mapped(shard) >= shard.stat().st_size


def test_a_large_dataset_is_mapped_as_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would make the process look as if it had taken all of it."""
    monkeypatch.setattr(sources_module, "SMALL", 1 << 20)
    shard = write(tmp_path / "a")
    dataset = LocalDataset(str(tmp_path / "a"))
    assert len(dataset[0]["x"]) == 64 * KIB
    assert 0 < mapped(shard) < shard.stat().st_size // 2
