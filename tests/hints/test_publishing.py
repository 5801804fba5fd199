"""Orders that programs make themselves: published, followed by what is read, in this process and in workers."""

from __future__ import annotations

import os
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

from streaming import StreamingDataset
from streaming.publishing import PublishedOrder
from tests.mount.host import until

from .test_readers import cache, ids, jobs

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["cache"]


class ByIndex(Dataset[Any]):
    """A map-style dataset over a streaming one, as samplers need it."""

    def __init__(self, inner: StreamingDataset) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return self.inner.size

    def __getitem__(self, at: int) -> Any:
        return self.inner[at]


def first(batch: list[Any]) -> list[int]:
    """Collated: the ids."""
    return [sample["id"] for sample in batch]


def order() -> list[int]:
    """Of 200 samples, by nobody's algorithm."""
    found: list[int] = np.random.default_rng(3).permutation(200).tolist()
    return found


def places(folder: Path) -> list[tuple[int, int]]:
    """Epoch and batch of each lane of each job: one where somebody has said where it is, none before."""
    return [(each["epoch"], each["batch"]) for job in jobs(folder) for each in job["positions"]]


def test_reads_by_index_are_followed(folder: str, cache: Path) -> None:
    """Also past a part that is skipped and reads that were not planned; a second order takes the first one's place."""
    dataset = StreamingDataset(remote=folder, local=str(cache), batch_size=4)
    planned = order()
    published = dataset.publish_order(planned)
    (job,) = jobs(cache)
    assert (job["source"], job["orders"], job["positions"]) == ("ids", {"1": "ready"}, [])
    assert ids(dataset[planned[:40]]) == planned[:40]
    assert dataset[planned[5]]["id"] == planned[5]
    assert ids(dataset[planned[60:80]]) == planned[60:80]
    published.moved(80)
    until(lambda: places(cache) == [(1, 20)])
    again = dataset.publish_order(planned[::-1], batch_size=10)
    again.moved(50)
    until(lambda: places(cache) == [(2, 5)])
    again.close()
    until(lambda: jobs(cache) == [])
    assert ids(dataset[planned[:3]]) == planned[:3]


@pytest.mark.usefixtures("every_read")
def test_batches_are_followed(folder: str, cache: Path) -> None:
    """`load_batch` reads a batch at once."""
    dataset = StreamingDataset(remote=folder, local=str(cache), batch_size=4)
    planned = order()
    with dataset.publish_order(planned):
        for at in range(0, 200, 4):
            assert dataset.load_batch(planned[at : at + 4], ["id"])["id"].tolist() == planned[at : at + 4]
            if at == 104:
                until(lambda: places(cache) == [(1, 26)])
    until(lambda: jobs(cache) == [])


@pytest.mark.usefixtures("every_read")
def test_a_copy_is_followed_by_itself(folder: str, cache: Path) -> None:
    """What a spawned worker gets."""
    dataset = StreamingDataset(remote=folder, local=str(cache), batch_size=4)
    planned = order()
    with dataset.publish_order(planned):
        copy = pickle.loads(pickle.dumps(dataset))
        assert ids(copy[planned[:60]]) == planned[:60]
        until(lambda: [batch >= 10 for _, batch in places(cache)] == [True])


def test_workers_are_followed(folder: str, cache: Path) -> None:
    """Each reads every other batch; the slower one counts."""
    dataset = StreamingDataset(remote=folder, local=str(cache), batch_size=4)
    planned = order()
    with dataset.publish_order(planned):
        batches = [planned[at : at + 4] for at in range(0, 200, 4)]
        loader: Any = DataLoader(
            ByIndex(dataset),
            batch_sampler=batches,
            num_workers=2,
            collate_fn=first,
            multiprocessing_context="fork",
        )
        found = iter(loader)
        begun = [next(found) for _ in range(30)]
        until(lambda: len(jobs(cache)[0]["readers"]) == 3)
        assert begun + list(found) == batches
        assert os.getpid() in jobs(cache)[0]["readers"]


def test_what_cannot_be_published(folder: str) -> None:
    """Ids of nothing, and none at all."""
    dataset = StreamingDataset(local=folder)
    for wrong in ([200], [-1]):
        with pytest.raises(IndexError, match="expected 0 to 199"):
            dataset.publish_order(wrong)
    with pytest.raises(ValueError, match="expected 1 to"):
        dataset.publish_order([])


def test_without_an_engine(folder: str) -> None:
    """Nothing happens, and reads are what they were."""
    dataset = StreamingDataset(local=folder)
    with dataset.publish_order(order()) as published:
        assert isinstance(published, PublishedOrder)
        assert ids(dataset[order()]) == order()
