"""What an iteration begins with is fetched all at once."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from streaming import JSONWriter, MDSWriter, Stream, StreamingDataLoader, StreamingDataset
from streaming.engine.client import EngineClient
from streaming.errors import ObjectMissingError
from streaming.mds.layout import head_size
from tests.mount.host import until
from tests.servers import Fault

from .samples import ids

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tests.servers import FaultProxy, StorageServer

SHARDS = 30


@pytest.fixture
def url(rclone: StorageServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A dataset in a bucket, four samples in each of its shards, most of which lie beyond its first block."""
    for name, value in rclone.variables.items():
        monkeypatch.setenv(name, value)
    with MDSWriter(columns={"id": "int", "x": "bytes"}, out=str(tmp_path / "a")) as writer:
        for number in range(4 * SHARDS):
            writer.write({"id": number, "x": bytes(6000)})
            if number % 4 == 3:
                writer.flush_shard()
    rclone.put_tree(tmp_path.name, tmp_path / "a")
    return rclone.url(tmp_path.name)


def seen(cache: Path) -> dict[str, Any]:
    """What the engine has seen of this process's reads: how often it asked for bytes, and for how many."""
    with EngineClient.connect(cache, client="cli") as client:
        clients = json.loads(client.status())["clients"]
    (mine,) = (each for each in clients if each["kind"] == "reader")
    return dict(mine)


def test_two_requests_for_a_batch(url: str, cache: Path) -> None:
    """One for the offsets, one for the samples; reading them afterwards asks nobody."""
    dataset = StreamingDataset(remote=url, local=str(cache), batch_size=8)
    batch = np.arange(3, 4 * SHARDS, 12)
    dataset.bring(batch)
    assert seen(cache)["wants"] == 2
    assert ids(dataset[batch]) == batch.tolist()
    dataset.bring(batch)
    assert seen(cache)["wants"] == 2


@pytest.mark.parametrize("loaded", [False, True])
def test_whoever_iterates_begins_so(
    url: str, cache: Path, tmp_path: Path, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, loaded: bool
) -> None:
    """The dataset itself, and the loader that puts batches together, ask for the offsets of all shards of a batch."""
    monkeypatch.setenv("S3_ENDPOINT_URL", proxy.endpoint)
    dataset = StreamingDataset(remote=url, local=str(cache), batch_size=8, shuffle=True)
    begun: Iterable[Any] = StreamingDataLoader(dataset, batch_size=8, num_workers=2) if loaded else dataset
    same = StreamingDataset(local=str(tmp_path / "a"), batch_size=8, shuffle=True)  # of which no engine hears
    shards = {number // 4 for number in same.begin_epoch(2 if loaded else 1)[0][0].tolist()}
    proxy.add(Fault("hang", match="shard."))  # or the engine, which knows the order, would have been faster
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(lambda: next(iter(begun)))
        try:
            until(lambda: seen(cache)["wanted_bytes"] == len(shards) * head_size(4))
        finally:
            proxy.clear()
        assert first.result(60)


def test_what_cannot_be_fetched_is_told_to_its_reader(url: str, cache: Path, rclone: StorageServer) -> None:
    """Bringing raises nothing; reading the sample does."""
    dataset = StreamingDataset(remote=url, local=str(cache), batch_size=2)
    rclone.delete(f"{url.rpartition('/')[2]}/shard.00003.mds")
    dataset.bring(np.array([2, 12]))
    assert dataset[2]["id"] == 2
    with pytest.raises(ObjectMissingError, match=r"shard\.00003"):
        dataset[12]


def test_streams_of_all_kinds(url: str, cache: Path, tmp_path: Path) -> None:
    """Shards of lines, and folders of this host, are passed over."""
    with JSONWriter(out=str(tmp_path / "lines"), columns={"id": "int"}) as writer:
        for number in range(10):
            writer.write({"id": number})
    streams = [Stream(remote=url, local=str(cache)), Stream(local=str(tmp_path / "lines"))]
    dataset = StreamingDataset(streams=streams, batch_size=8)
    wanted = [0, 4 * SHARDS, 4 * SHARDS + 9, 1]
    dataset.bring(np.array(wanted))
    assert ids(dataset[wanted]) == [0, 0, 9, 1]
