"""Which way to the bytes a folder is read by: what a mount says of its engine, and what happens without one."""

from __future__ import annotations

import json
import os
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from streaming import JSONWriter, LocalDataset, MDSWriter, StreamingDataset
from streaming.cached import EngineFolder
from streaming.sources import ENGINE_ATTRIBUTE, MountedFolder, PlainFolder, open_folder
from tests.dataset.conftest import without_engines
from tests.mount.harness import why_not_mountable
from tests.mount.host import Host

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["without_engines"]

SAMPLES = 120


def content(number: int) -> bytes:
    """A value of its own length."""
    return np.random.default_rng(number).bytes(100 + 97 * (number % 50))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw dataset, a compressed one below it, and lines."""
    top = tmp_path_factory.mktemp("source")
    columns = {"x": "bytes", "i": "int", "v": "ndarray:float32:3"}
    for folder, compression in ((top / "raw", None), (top / "deep" / "zstd", "zstd")):
        with MDSWriter(columns=columns, out=str(folder), compression=compression, size_limit="30kb") as writer:
            for number in range(SAMPLES):
                writer.write({"x": content(number), "i": number, "v": np.full(3, number, np.float32)})
    with JSONWriter(columns={"i": "int"}, out=str(top / "lines"), compression="gz", size_limit="1kb") as lines:
        for number in range(SAMPLES):
            lines.write({"i": number})
    return top


@pytest.fixture(scope="module")
def host(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """All of it behind one mount."""
    if why := why_not_mountable():
        pytest.skip(why)
    with Host(tmp_path_factory.mktemp("host")) as host:
        host.mounted(source)
        yield host


def right(sample: dict[str, Any], number: int) -> bool:
    return bool(
        sample["i"] == number and bytes(sample["x"]) == content(number) and sample["v"].tolist() == [number] * 3
    )


# ---- with a mount ----------------------------------------------------------------------------------------------------


@pytest.mark.mounted
@pytest.mark.parametrize("name", ["raw", "deep/zstd"])
def test_a_mounts_attribute_leads_to_its_engine(host: Host, name: str) -> None:
    """Each dataset below the mountpoint, however deep, is read directly from the cache."""
    folder = open_folder(host.mountpoint / name)
    assert isinstance(folder, EngineFolder)
    dataset = LocalDataset(host.mountpoint / name)
    assert all(right(dataset[number], number) for number in range(SAMPLES))


@pytest.mark.mounted
@pytest.mark.parametrize("zero_copy", [False, True])
@pytest.mark.parametrize("name", ["raw", "deep/zstd"])
def test_a_mount_that_names_no_engine(host: Host, without_engines: None, name: str, zero_copy: bool) -> None:
    """The mounted files themselves are read: in order, at random, by slices, and many samples at once."""
    assert isinstance(open_folder(host.mountpoint / name), MountedFolder)
    dataset = LocalDataset(host.mountpoint / name, zero_copy=zero_copy)
    assert all(right(dataset[number], number) for number in range(SAMPLES))
    order = random.Random(1).sample(range(SAMPLES), SAMPLES)
    assert all(right(dataset[number], number) for number in order)
    assert [sample["i"] for sample in dataset[-5:]] == list(range(SAMPLES - 5, SAMPLES))
    streaming = StreamingDataset(local=str(host.mountpoint / name), batch_size=4, shuffle=True)
    batch = streaming.load_batch(order)
    assert batch["i"].tolist() == order
    values, offsets = batch["x"]
    assert all(bytes(values[offsets[at] : offsets[at + 1]]) == content(number) for at, number in enumerate(order))
    assert sorted(sample["i"] for sample in streaming) == list(range(SAMPLES))


@pytest.mark.mounted
def test_lines_of_a_mount_that_names_no_engine(host: Host, without_engines: None) -> None:
    """Split formats, two files a shard, decompressed by the mount."""
    dataset = LocalDataset(host.mountpoint / "lines")
    assert [dataset[number]["i"] for number in range(SAMPLES)] == list(range(SAMPLES))


@pytest.mark.mounted
def test_a_mount_whose_engine_is_out_of_reach(host: Host, source: Path, tmp_path: Path) -> None:
    """A socket that nobody listens at (a container that sees the mount only): the mounted files are read."""
    said = json.loads(os.getxattr(host.mountpoint / "raw", ENGINE_ATTRIBUTE))
    assert said["protocol"] == 1
    before = os.stat(said["socket"])
    hidden = said["socket"] + ".hidden"
    os.rename(said["socket"], hidden)
    try:
        folder = open_folder(host.mountpoint / "raw")
        assert isinstance(folder, MountedFolder)
        dataset = LocalDataset(host.mountpoint / "raw")
        assert all(right(dataset[number], number) for number in range(0, SAMPLES, 7))
    finally:
        os.rename(hidden, said["socket"])
    assert os.stat(said["socket"]).st_ino == before.st_ino
    assert isinstance(open_folder(host.mountpoint / "raw"), EngineFolder)


# ---- what somebody wrote into the attribute --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"garbage",
        b"[]",
        b"{}",
        b"null",
        b"\xff\xfe",
        b'{"protocol": 2, "socket": "/x", "url": "s3://b/p", "identity": {}}',
        b'{"protocol": 1, "socket": "/nowhere/x.sock", "url": "s3://b/p", "identity": {}}',
        b'{"protocol": 1, "socket": 5, "url": null, "identity": []}',
        b'{"protocol": 1, "socket": "' + b"x" * 200 + b'", "url": "s3://b/p", "identity": {}}',
    ],
)
def test_an_attribute_that_leads_nowhere(source: Path, value: bytes) -> None:
    """A folder whose attribute makes no sense, or names no living engine, is read as the plain folder that it is."""
    folder = source / "raw"
    try:
        os.setxattr(folder, ENGINE_ATTRIBUTE, value)
    except OSError as error:
        pytest.skip(f"no extended attributes here: {error}")
    try:
        assert isinstance(open_folder(folder), PlainFolder)
        assert right(LocalDataset(folder)[SAMPLES - 1], SAMPLES - 1)
    finally:
        os.removexattr(folder, ENGINE_ATTRIBUTE)
