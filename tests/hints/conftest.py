"""Engines and datasets of tests/engine, and readers that hint by hand."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from streaming import hinting, publishing
from streaming.engine.hint import Hint, HintedStream, HintWorld, encode, order_of
from streaming.engine.sealed import map_sealed, sealed_memory
from streaming.order.spec import OrderSpec
from streaming.remote import RemoteOptions
from streaming.writer import MDSWriter
from tests.engine.conftest import Engine, runtime_directory, start

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from streaming.engine.client import EngineClient, Hinted, HintedOrder

__all__ = ["Engine", "runtime_directory", "start"]

MIB = 1 << 20


def write(folder: Path, samples: int, per_shard: int = 10, size: int = 100) -> str:
    """Samples {id, x} of so many bytes."""
    rng = np.random.default_rng(samples)
    with MDSWriter(columns={"id": "int", "x": "bytes"}, out=str(folder)) as writer:
        for number in range(samples):
            writer.write({"id": number, "x": rng.bytes(size)})
            if number % per_shard == per_shard - 1:
                writer.flush_shard()
    return str(folder)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A dataset of 200 samples in 20 shards."""
    return write(tmp_path / "data", 200)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine is waited for that a busy machine keeps waiting: readers would go on without it."""
    monkeypatch.setattr(hinting, "HINT_TIMEOUT", 60.0)
    monkeypatch.setattr(hinting, "ORDER_TIMEOUT", 60.0)


@pytest.fixture
def every_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each read tells its position, however soon it follows the last one."""
    monkeypatch.setattr(hinting, "INTERVAL", 0.0)
    monkeypatch.setattr(publishing, "INTERVAL", 0.0)


def spec_of(samples: int = 200, per_shard: int = 10, **options: Any) -> OrderSpec:
    """The order of such a dataset."""
    from streaming.order.spec import StreamSpec

    sizes = np.full(samples // per_shard, per_shard, np.int64)
    options = {"batch_size": 4, "canonical_nodes": 1, "shuffle": True, "seed": 7} | options
    return OrderSpec((StreamSpec(sizes, samples),), **options)


@dataclass
class HandReader:
    """Sends hints as given."""

    client: EngineClient
    url: str
    name: str = "job"
    dataset: int = field(init=False)

    def __post_init__(self) -> None:
        source = self.client.open(self.url, RemoteOptions().identity(self.url))
        self.dataset = source.datasets[0].dataset

    def document(self, spec: OrderSpec, world: HintWorld, **changes: Any) -> Hint:
        """A hint for the dataset."""
        streams = tuple(HintedStream(each.choose, each.proportion, self.dataset) for each in spec.streams)
        return Hint(**{"job": self.name, "streams": streams, "world": world, "order": order_of(spec), **changes})

    def send(self, hint: Hint, epoch: int = 0, drop: int = 0, places: Sequence[Any] = ((0, 0, 0),)) -> Hinted:
        """Send it."""
        return self.send_bytes(b"".join(encode(hint)), epoch, drop, places)

    def send_bytes(self, data: bytes, epoch: int = 0, drop: int = 0, places: Sequence[Any] = ((0, 0, 0),)) -> Hinted:
        """Send any bytes as a hint."""
        fd = sealed_memory("hint", [data])
        try:
            return self.client.hint(fd, epoch, drop, list(places))
        finally:
            os.close(fd)

    def jobs(self) -> list[dict[str, Any]]:
        """As the status shows them."""
        return list(json.loads(self.client.status())["jobs"])

    def refused(self) -> list[str]:
        """As the status shows them."""
        return list(json.loads(self.client.status())["refused_hints"])


def taken(order: HintedOrder) -> NDArray[np.int64]:
    """The array of an order; its descriptor is closed."""
    try:
        return np.frombuffer(map_sealed(order.fd, 1 << 40), np.int64).reshape(order.shape)
    finally:
        os.close(order.fd)
