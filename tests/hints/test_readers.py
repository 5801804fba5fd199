"""Readers tell their engines what they read, by themselves, and read the same whatever comes of it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from streaming import Stream, StreamingDataLoader, StreamingDataset
from streaming.engine.client import EngineClient
from streaming.errors import EngineError
from streaming.order.epoch import rank_order
from tests.mount.harness import why_not_mountable
from tests.mount.host import Host, until

from .conftest import write

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OPTIONS: dict[str, Any] = {"batch_size": 4, "shuffle": True}


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    """A folder for `local=`; its engine ends with the test."""
    folder = tmp_path / "cache"
    yield folder
    end_engine(folder, signal.SIGTERM)


def end_engine(folder: Path, number: int) -> None:
    """End the engine of a cache directory, if one runs."""
    with contextlib.suppress(EngineError, OSError), EngineClient.connect(folder, client="cli") as client:
        ended = os.pidfd_open(client.engine["pid"])
        os.kill(client.engine["pid"], number)
        assert select.select([ended], [], [], 60)[0]
        os.close(ended)


def jobs(folder: Path) -> list[dict[str, Any]]:
    """The jobs that the engine of a cache directory knows."""
    with EngineClient.connect(folder, client="cli") as client:
        found: list[dict[str, Any]] = json.loads(client.status())["jobs"]
    return found


def lanes(folder: Path) -> list[tuple[int, int, int, int]]:
    """Rank, worker, epoch and batch of every reader of every job."""
    names = ("rank", "worker", "epoch", "batch")
    return sorted(tuple(each[name] for name in names) for job in jobs(folder) for each in job["positions"])


def ids(samples: Any) -> list[int]:
    """Of samples, or of collated batches."""
    return [number for sample in samples for number in np.atleast_1d(sample["id"]).tolist()]


@pytest.mark.usefixtures("every_read")
def test_a_process_that_iterates(folder: str, cache: Path) -> None:
    """Its job, its place and its orders are in the status; the next epoch's order is there before the epoch."""
    here, there = (
        StreamingDataset(local=folder, **OPTIONS),
        StreamingDataset(remote=folder, local=str(cache), **OPTIONS),
    )
    expected = [ids(here), ids(here)]
    samples = iter(there)
    found = ids(next(samples) for _ in range(20))
    (job,) = jobs(cache)
    assert (job["epoch"], job["readers"], job["source"]) == (0, [os.getpid()], "order")
    until(lambda: jobs(cache)[0]["orders"]["0"] == "ready")
    found += ids(next(samples) for _ in range(150))
    until(lambda: jobs(cache)[0]["orders"] == {"0": "ready", "1": "ready"})
    found += ids(samples)
    until(lambda: lanes(cache) == [(0, 0, 0, 50)])
    assert [found, ids(there)] == expected
    until(lambda: sorted(jobs(cache)[0]["orders"]) == ["1", "2"])
    samples = iter(there)
    next(samples)
    del samples, there
    until(lambda: jobs(cache) == [])


@pytest.mark.parametrize(("context", "workers"), [("fork", 2), ("spawn", 1)])
def test_workers(folder: str, cache: Path, context: str, workers: int) -> None:
    """Each worker tells of its own lane, on a connection of its own; together they are one job."""
    expected = ids(StreamingDataLoader(StreamingDataset(local=folder, **OPTIONS), batch_size=4, num_workers=workers))
    dataset = StreamingDataset(remote=folder, local=str(cache), **OPTIONS)
    assert dataset[3]["id"] == 3
    loader = StreamingDataLoader(
        dataset, batch_size=4, num_workers=workers, worker_init_fn=print, multiprocessing_context=context
    )
    batches = iter(loader)
    found = ids([next(batches)])
    until(lambda: len(lanes(cache)) == workers)
    (job,) = jobs(cache)
    assert len(job["readers"]) == workers
    assert os.getpid() not in job["readers"]
    assert job["warnings"] == []
    assert found + ids(batches) == expected


def test_batches_that_are_gathered(folder: str, cache: Path) -> None:
    """The main process reads for its workers, and tells of every lane."""
    dataset = StreamingDataset(remote=folder, local=str(cache), **OPTIONS)
    loader = StreamingDataLoader(dataset, batch_size=4, num_workers=2)
    assert len(list(loader)) == 50
    until(lambda: lanes(cache) == [(0, 0, 0, 25), (0, 1, 0, 25)])
    assert jobs(cache)[0]["readers"] == [os.getpid()]


def test_resumption(folder: str, cache: Path) -> None:
    """The rest of an epoch is an order of its own."""
    first = StreamingDataset(local=folder, **OPTIONS)
    whole = ids(first)
    state = first.state_dict(80, from_beginning=True)
    again = StreamingDataset(remote=folder, local=str(cache), **OPTIONS)
    again.load_state_dict(state)
    assert ids(again) == whole[80:]
    until(lambda: lanes(cache) == [(0, 0, 0, 30)])


def test_ranks_and_replication(folder: str, cache: Path) -> None:
    """Ranks that see the same samples share a lane; where one of them is last counts."""
    ranks = [
        StreamingDataset(
            remote=folder, local=str(cache), rank=rank, world_size=4, local_world_size=4, replication=2, **OPTIONS
        )
        for rank in range(4)
    ]
    plain = [
        StreamingDataset(local=folder, rank=rank, world_size=4, local_world_size=4, replication=2, **OPTIONS)
        for rank in range(4)
    ]
    assert [ids(each) for each in ranks] == [ids(each) for each in plain]
    until(lambda: lanes(cache) == [(0, 0, 0, 25), (0, 0, 0, 25), (1, 0, 0, 25), (1, 0, 0, 25)])


@pytest.mark.usefixtures("every_read")
def test_the_engine_dies(folder: str, cache: Path) -> None:
    """In mid-epoch: the sequence goes on unchanged, and the next engine hears where it is."""
    expected = ids(StreamingDataset(local=folder, **OPTIONS))
    dataset = StreamingDataset(remote=folder, local=str(cache), **OPTIONS)
    samples = iter(dataset)
    found = ids(next(samples) for _ in range(30))
    end_engine(cache, signal.SIGKILL)
    with contextlib.suppress(EngineError):
        dataset.cache_usage  # noqa: B018 - notices that the engine is gone
    assert dataset.cache_usage >= 0  # another one was started
    found += ids(next(samples) for _ in range(40))
    until(lambda: [each["batch"] >= 7 for job in jobs(cache) for each in job["positions"]] == [True])
    assert found + ids(samples) == expected


def test_a_large_order_comes_from_the_engine(tmp_path: Path, cache: Path) -> None:
    """Once for all; it equals what each would have computed."""
    shards = [
        {
            "column_encodings": ["int"],
            "column_names": ["id"],
            "column_sizes": [8],
            "compression": None,
            "format": "mds",
            "hashes": [],
            "raw_data": {"basename": f"shard.{number:05d}.mds", "bytes": 12 * 600_000 + 1000, "hashes": {}},
            "samples": 600_000,
            "size_limit": 1 << 26,
            "version": 2,
            "zip_data": None,
        }
        for number in range(3)
    ]
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "index.json").write_text(json.dumps({"version": 2, "shards": shards}))
    dataset = StreamingDataset(remote=str(tmp_path / "large"), local=str(cache), batch_size=32, shuffle=True)
    found = dataset.begin_epoch(2)
    assert found.base is not None
    assert not found.flags.writeable
    assert jobs(cache)[0]["orders"]["0"] == "ready"
    world = dataset._world()
    world = type(world)(world.num_nodes, world.ranks_per_node, 2, 0)
    assert np.array_equal(found, rank_order(dataset._spec(), world, 0))


def test_streams_of_two_engines(folder: str, cache: Path, tmp_path: Path) -> None:
    """Each engine is told of the whole mix, and has its own streams of it."""
    other, local = write(tmp_path / "other", 60), write(tmp_path / "local", 40)
    caches = [cache, tmp_path / "cache2"]

    def mix(*, remote: bool) -> StreamingDataset:
        streams = [
            Stream(remote=folder, local=str(caches[0])) if remote else Stream(local=folder),
            Stream(local=local),
            Stream(remote=other, local=str(caches[1])) if remote else Stream(local=other),
        ]
        return StreamingDataset(streams=streams, **OPTIONS)

    try:
        expected = ids(mix(remote=False))
        dataset = mix(remote=True)
        assert ids(dataset) == expected
        for each, its in zip(caches, ([False, True, True], [True, True, False]), strict=True):
            until(lambda each=each: lanes(each) == [(0, 0, 0, 75)])
            assert [url is None for url in jobs(each)[0]["datasets"]] == its
        del dataset
    finally:
        end_engine(caches[1], signal.SIGTERM)


@pytest.mark.mounted
@pytest.mark.skipif(why_not_mountable() is not None, reason=str(why_not_mountable()))
def test_through_the_door_of_a_mount(folder: str, tmp_path: Path) -> None:
    """A reader of a mounted folder hints as well."""
    with Host(tmp_path) as host:
        host.mounted(folder)
        dataset = StreamingDataset(local=str(host.mountpoint), **OPTIONS)
        assert ids(dataset) == ids(StreamingDataset(local=folder, **OPTIONS))
        (job,) = host.status()["jobs"]
        assert job["readers"] == [os.getpid()]
