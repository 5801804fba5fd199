"""What an epoch takes of each worker's memory: nothing that grows with the data."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from streaming import StreamingDataLoader, StreamingDataset, resident

from .sparse import resident_bytes, write_sparse

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
WORKERS = 8


def measured(samples: list[Any]) -> tuple[int, int, int]:
    """(pid, RSS, samples) as the worker has it that puts a batch together."""
    assert not any(sample["x"][::4096].any() for sample in samples)  # every page is looked at
    return os.getpid(), resident_bytes(), len(samples)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 8 worker processes")
def test_workers_stay_flat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight workers, each of which reads eight times the bound: what is resident never grows far beyond that."""
    bound = 16 * MIB
    monkeypatch.setattr(resident, "MOST", bound)
    monkeypatch.setattr(resident, "SMALL", bound)
    total = 8 * WORKERS * bound
    samples = write_sparse(tmp_path / "a", total, sample=MIB // 4, shard=16 * MIB)
    dataset = StreamingDataset(local=str(tmp_path / "a"), batch_size=4, shuffle=True, predownload=4)
    loader = StreamingDataLoader(dataset, batch_size=4, num_workers=WORKERS, collate_fn=measured)
    first: dict[int, int] = {}
    most: dict[int, int] = {}
    seen = 0
    for pid, resident_then, count in loader:
        first.setdefault(pid, resident_then)
        most[pid] = max(most.get(pid, 0), resident_then)
        seen += count
    assert seen == samples
    assert len(first) == WORKERS
    # the heap and the libraries' own data grow in the first batches; all of the data would be eight bounds
    assert max(most[pid] - first[pid] for pid in first) < 5 * bound
