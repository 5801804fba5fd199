"""What the plan saves: real engines and readers, and the bytes that a real server sent for each epoch."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from streaming import MDSWriter, StreamingDataLoader, StreamingDataset
from tests.mount.host import until
from tests.servers import Fault

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.servers import FaultProxy, StorageServer

    from .conftest import Engine

    Start = Callable[..., Engine]
    Open = Callable[..., "Source"]

SAMPLE = 64 << 10


class Source:
    """A dataset behind a proxy that counts, and an engine with a cache for a part of it."""

    def __init__(
        self, engine: Engine, proxy: FaultProxy, url: str, size: int, samples: int, each: int = SAMPLE
    ) -> None:
        self.engine, self.url, self.size, self.samples = engine, url, size, samples
        self.proxy, self._seen, self._each = proxy, 0, each

    def sent(self) -> float:
        """Bytes of shards that were sent since the last call, in parts of the dataset."""
        before, self._seen = self._seen, self.proxy.bytes_sent("shard.")
        return (self._seen - before) / self.size

    def dataset(self, **options: Any) -> StreamingDataset:
        """A reader."""
        options = {"shuffle": True, "batch_size": 8, "num_canonical_nodes": 1} | options
        cache = str(self.engine.cache)
        return StreamingDataset(remote=self.url, local=cache, cache_limit=self.engine.limit, **options)

    def plan(self) -> dict[str, Any]:
        """Of the only job; empty where none is known."""
        jobs = self.engine.status()["jobs"]
        return dict(jobs[0]["plan"] or {}) if jobs else {}

    def read(self, samples: Any) -> list[int]:
        """An epoch, or a part of it, checked: the ids."""
        found = []
        for sample in samples:
            assert sample["x"] == content(sample["id"])[: self._each]
            found.append(sample["id"])
        return found


def content(number: int) -> bytes:
    """Of a sample."""
    return np.random.default_rng(number).bytes(SAMPLE)


@pytest.fixture
def opened(
    start: Start, rclone: StorageServer, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Open:
    """Writes and serves a dataset, and starts an engine for it."""
    for name, value in rclone.variables_for(proxy.endpoint).items():
        monkeypatch.setenv(name, value)

    def make(shards: int, samples: int, part: float, each: int = SAMPLE, **options: Any) -> Source:
        folder = tmp_path / "data"
        with MDSWriter(columns={"id": "int", "x": "bytes"}, out=str(folder), **options) as writer:
            for number in range(shards * samples):
                writer.write({"id": number, "x": content(number)[:each]})
                if number % samples == samples - 1:
                    writer.flush_shard()
        size = sum(path.stat().st_size for path in folder.glob("shard.*"))
        rclone.put_tree(tmp_path.name, folder)
        (tmp_path / "cache").mkdir(mode=0o700)
        engine = start(int(size * part), env=rclone.variables_for(proxy.endpoint))
        return Source(engine, proxy, rclone.url(tmp_path.name), size, shards * samples, each)

    return make


def test_of_a_dataset_far_larger_than_the_cache_only_samples_are_fetched(opened: Open) -> None:
    """Every shard is live, and larger than the cache: an epoch's bytes are its samples', and whole blocks at the ends.

    Each byte read is right, and the limit was enough.
    """
    source = opened(12, 60, 0.06)
    dataset = source.dataset()
    assert sorted(source.read(dataset)) == list(range(source.samples))
    assert source.sent() < 1.2
    (regime,) = source.plan()["datasets"]
    assert regime["regime"] == "ranges"
    assert 0.9 * source.size <= regime["changes_at_bytes"] < 1.2 * source.size
    assert "larger than the cache" in regime["reason"]


@pytest.mark.parametrize("options", [{}, {"compression": "zstd:1", "frame": "sample"}], ids=["raw", "frames"])
def test_nothing_is_fetched_of_what_else_lies_on_a_sample_s_blocks(opened: Open, options: dict[str, Any]) -> None:
    """Samples of five blocks at most: neither the rest of their outer ones, nor the frames beside their own."""
    source = opened(12, 100, 0.2, 14_000, **options)
    dataset = source.dataset()
    assert sorted(source.read(dataset)) == list(range(source.samples))
    assert source.sent() < 1.08
    (regime,) = source.plan()["datasets"]
    assert regime["regime"] == "ranges"


def test_where_the_live_window_fits_an_epoch_fetches_what_the_cache_cannot_hold(opened: Open) -> None:
    """Half of the dataset fits, an eighth of it is live: whole shards, and after the first epoch half of the bytes."""
    source = opened(32, 16, 0.5)
    dataset = source.dataset(shuffle_block_size=64, batch_size=4)
    source.read(dataset)
    assert source.sent() < 1.02
    for _ in range(2):
        source.read(dataset)
    assert source.sent() / 2 < 0.5 * 1.15
    (regime,) = source.plan()["datasets"]
    assert regime["regime"] == "shards"


def test_several_readers_fetch_each_byte_once_and_later_epochs_none(opened: Open) -> None:
    """Two jobs of different orders with two workers each, room for all."""
    source = opened(8, 24, 1.3)
    datasets = [source.dataset(shuffle_seed=seed) for seed in (1, 2)]
    loaders = [
        StreamingDataLoader(each, batch_size=8, num_workers=2, worker_init_fn=print, multiprocessing_context="fork")
        for each in datasets
    ]
    for _ in range(2):
        found = [int(number) for pair in zip(*loaders, strict=True) for batch in pair for number in batch["id"]]
        assert sorted(found) == sorted([*range(source.samples)] * 2)
    assert 0.99 < source.sent() <= 1.001
    assert len(source.engine.status()["jobs"]) == 2


def test_the_next_epoch_begins_with_what_is_there(opened: Open) -> None:
    """Its head has been loaded at the end of the one before: nobody waits at the boundary."""
    source = opened(8, 24, 0.5)
    dataset = source.dataset()
    source.read(dataset)
    engine = source.engine

    def head_is_there(status: dict[str, Any]) -> bool:
        plan = status["jobs"][0]["plan"]
        planned = plan and plan["known"] >= source.samples and plan["horizon"] >= 16
        return planned and not status["fills"]["running"]

    misses = engine.status_when(head_is_there)["reads"]["misses"]
    samples = iter(dataset)
    source.read(next(samples) for _ in range(8))
    assert engine.status()["reads"]["misses"] == misses


def test_of_a_resumed_epoch_only_the_rest_is_fetched(opened: Open) -> None:
    """A reader enters an epoch in its middle: nothing that lies behind it is fetched."""
    source = opened(8, 24, 0.35)
    dataset = source.dataset()
    state = {"epoch": 0, "sample_in_epoch": 144, "num_canonical_nodes": 1, "shuffle_seed": 9176}
    dataset.load_state_dict(state | {"initial_physical_nodes": 1})
    assert len(source.read(dataset)) == 48
    assert source.engine.status()["jobs"][0]["positions"][0]["epoch"] == 0
    assert source.sent() < 0.25 * 1.2 + 0.35


def test_a_stall_is_told_with_its_reader_sample_and_cause(opened: Open) -> None:
    """A sample of an order that the store was late with had to be waited for; so had one that no order told of."""
    source = opened(8, 24, 0.3)
    dataset = source.dataset()
    order = source.read(dataset)
    until(lambda: source.plan().get("known", 0) >= source.samples // 2)
    source.proxy.add(Fault("hang", match="shard."))

    def wait_for_a_stall() -> None:
        source.engine.status_when(lambda status: status["reads"]["waiting"])
        source.proxy.clear()

    with ThreadPoolExecutor(1) as threads:
        stalled = threads.submit(wait_for_a_stall)
        source.read(dataset)
        stalled.result()
    causes = source.plan()["stalls"]["causes"]
    assert sum(each["count"] for cause, each in causes.items() if cause in ("bandwidth", "latency", "limit")) > 0
    before = causes.get("unplanned read", {"count": 0})["count"]
    for number in order:
        dataset[number]
    stalls = source.plan()["stalls"]
    assert stalls["causes"]["unplanned read"]["count"] > before
    last = next(each for each in reversed(stalls["last"]) if each["sample"] is not None)  # it is in a shard's head
    assert last["reader"] == os.getpid()
    assert last["shard"] == f"shard.{last['sample'] // 24:05}.mds"
    assert last["seconds"] > 0


def jobs_of(source: Source, kind: str) -> int:
    """How many jobs of a kind the fetchers were given."""
    series = source.engine.status()["timings"]["series"]
    labels = {"kind": kind}
    return sum(sum(each["counts"]) for each in series if each["name"] == "fetch_seconds" and each["labels"] == labels)


@pytest.mark.parametrize("options", [{}, {"compression": "zstd:1", "frame": "sample"}], ids=["raw", "frames"])
def test_small_ranges_are_fetched_by_the_dozen(opened: Open, options: dict[str, Any]) -> None:
    """A cache for less than half, samples of two blocks: right bytes in the limit, few jobs for many requests."""
    source = opened(16, 100, 0.4, 8000, **options)
    dataset = source.dataset(batch_size=24)
    assert sorted(source.read(dataset)) == list(range(source.samples))
    status = source.engine.quiet()
    alone = sum(jobs_of(source, kind) for kind in ("range", "frames"))
    assert status["remote"]["requests"] - alone > 3 * jobs_of(source, "group") > 0
    assert status["fills"] == {"running": 0, "failed": 0, "refetched": 0, "in_flight_bytes": 0}


def test_what_a_group_does_not_bring_is_fetched_alone(opened: Open) -> None:
    """Requests that break, are refused, or bring wrong bytes: every sample is right, and none was given up."""
    source = opened(8, 100, 0.4, 9000, compression="zstd:1", frame="sample")
    dataset = source.dataset(batch_size=24)
    samples = iter(dataset)
    found = source.read(next(samples) for _ in range(160))
    # one request may meet all of those that are tried again, and still has its sixth attempt
    for kind, times in (("reset", 2), ("status", 1), ("truncate", 2), ("corrupt", 1)):
        source.proxy.add(Fault(kind, match="shard.", times=times, after=100))
    found += source.read(samples)
    assert sorted(found) == list(range(source.samples))
    assert source.engine.quiet()["fills"]["failed"] == 0


def test_shards_compressed_as_one_piece_are_warned_of_with_the_price(opened: Open) -> None:
    """They can't be fetched by range: the right bytes come, many times over, and the plan says what helps."""
    source = opened(6, 12, 0.55, compression="gz")
    dataset = source.dataset(batch_size=4)
    assert sorted(source.read(dataset)) == list(range(source.samples))
    (warning,) = source.plan()["warnings"]
    assert "compressed as one piece" in warning
    assert "`mdsfs repack`" in warning
    assert source.engine.log.read_text().count("compressed as one piece") == 1


def test_what_an_earlier_engine_left_is_found_by_the_plan(opened: Open, start: Start) -> None:
    """A dataset that is there already is not fetched again by the job of the next engine, nor pushed out."""
    source = opened(6, 16, 1.3)
    source.read(source.dataset())
    source.engine.quiet()
    assert source.sent() > 0.99
    env = {name: os.environ[name] for name in os.environ if name.startswith(("AWS_", "S3_"))}
    assert source.engine.stop() == 0
    source.engine = start(source.engine.limit, env=env)
    source.read(source.dataset())
    assert source.sent() == 0
    assert source.engine.status()["evictions"]["count"] == 0
