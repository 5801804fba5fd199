"""`load_batch` gathers from memory addresses: it must give what single samples give, whatever happens to the maps."""

from __future__ import annotations

import os
import resource
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from streaming import MDSWriter, Stream, StreamingDataset, gather
from streaming.addresses import address_of
from streaming.reader import most_open

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import StorageServer

COLUMNS = {"data": "bytes", "id": "int", "name": "str", "pixels": "ndarray:uint16:3,2"}


def content(number: int) -> dict[str, Any]:
    """A sample whose sizes vary with its number; every third one is as long as the one before."""
    rng = np.random.default_rng(number)
    return {
        "data": rng.bytes(1 + (number - number % 3) * 37 % 5000),
        "id": number,
        "name": f"sample {number}" * (number % 4),
        "pixels": rng.integers(0, 1 << 16, (3, 2), np.uint16),
    }


def write(folder: Path, count: int, size_limit: int = 20_000, first: int = 0, **options: Any) -> str:
    with MDSWriter(columns=COLUMNS, out=str(folder), size_limit=size_limit, **options) as writer:
        for number in range(first, first + count):
            writer.write(content(number))
    return str(folder)


def check(dataset: StreamingDataset, wanted: list[int], out: Any = None) -> Any:
    """Every column of a batch is what the samples hold."""
    batch = dataset.load_batch(wanted, out=out)
    expected = [content(number) for number in wanted]
    assert batch["id"].tolist() == wanted
    assert np.array_equal(batch["pixels"], [each["pixels"] for each in expected])
    for name in ("data", "name"):
        values, offsets = batch[name]
        found = [bytes(values[start:stop]) for start, stop in pairwise(offsets)]
        assert found == [each[name].encode() if name == "name" else each[name] for each in expected]
    return batch


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_many_shards(tmp_path: Path, compression: str | None) -> None:
    """Random batches over many shards, one after the other into the same memory."""
    dataset = StreamingDataset(local=write(tmp_path / "a", 300, compression=compression))
    assert dataset.num_shards > 10
    rng, out = np.random.default_rng(1), None
    for size in (1, 7, 64, 300):
        out = check(dataset, rng.integers(0, 300, size).tolist(), out)


def test_two_threads_copy_large_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each value once, whatever their sizes."""
    monkeypatch.setattr(gather, "SHARED", 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    dataset = StreamingDataset(local=write(tmp_path / "a", 100))
    rng = np.random.default_rng(2)
    for size in (1, 2, 3, 100):
        check(dataset, rng.integers(0, 100, size).tolist())
    check(dataset, [0, 99])
    check(dataset, [99, 0])


def test_what_fails_in_either_thread_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is whole, or it is an error."""
    monkeypatch.setattr(gather, "SHARED", 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    source = np.zeros(20, np.uint8)
    begins = address_of(source) + np.arange(0, 20, 5)
    with pytest.raises(ValueError, match="broadcast"):
        gather._copy(begins, begins + 5, [5, 10, 15, 20], np.zeros(12, np.uint8))


@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("wrong", [-1, 60])
def test_ids_out_of_range(tmp_path: Path, streams: int, wrong: int, *, views: bool) -> None:
    """They are told with the range, of all streams."""
    share = 60 // streams
    parts = [Stream(local=write(tmp_path / str(at), share, first=at)) for at in range(0, 60, share)]
    with pytest.raises(IndexError, match=f"expected 0 to 59, got {min(wrong, 3)} to {max(wrong, 3)}"):
        StreamingDataset(streams=parts).load_batch([3, wrong], views=views)


def test_streams_of_other_columns_in_another_order(tmp_path: Path) -> None:
    """Streams are located each for itself; a batch takes from all of them."""
    streams = [Stream(local=write(tmp_path / "a", 30)), Stream(local=write(tmp_path / "b", 40, first=30))]
    check(StreamingDataset(streams=streams), [69, 0, 31, 29, 30, 5])


def test_a_closed_shard_is_mapped_again(tmp_path: Path) -> None:
    """What was known of a map goes with it."""
    dataset = StreamingDataset(local=write(tmp_path / "a", 100))
    check(dataset, list(range(100)))
    for number in range(dataset.num_shards):
        dataset.evict_shard(number)
    check(dataset, list(range(99, -1, -1)))


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    """Hardly more files may be open than are, and as many again: half of all is the program's."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (2 * highest + 64, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_batch_of_more_shards_than_may_be_open(tmp_path: Path, few_descriptors: None) -> None:
    """It is gathered in parts."""
    folder = write(tmp_path / "a", 800, size_limit=2000)
    dataset = StreamingDataset(local=folder)
    assert dataset.num_shards > most_open()
    check(dataset, list(range(800)))


@pytest.mark.parametrize("limit", ["64mb", "3mb"])
def test_from_a_cache(
    rclone: StorageServer, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    """From an engine's cache, with room for all and with room for half: the same values."""
    for name, value in rclone.variables.items():
        monkeypatch.setenv(name, value)
    folder = write(tmp_path / "a", 2000, size_limit=1 << 18)
    rclone.put_tree(f"{tmp_path.name}-gather", Path(folder))
    dataset = StreamingDataset(remote=rclone.url(f"{tmp_path.name}-gather"), local=str(cache), cache_limit=limit)
    rng = np.random.default_rng(1)
    for _ in range(12):
        check(dataset, rng.integers(0, 2000, 100).tolist())
