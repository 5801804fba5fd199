"""Datasets of real mosaicml-streaming through the mount: bytes, our reader, and the peer itself."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from streaming import LocalDataset
from tests.mount.host import Host
from tests.peer import samples
from tests.peer.test_bytes import PYTHON, peer, raw_files, values, write

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers import StorageServer

pytestmark = [
    pytest.mark.peer,
    pytest.mark.mounted,
    pytest.mark.skipif(not PYTHON.exists(), reason="mosaicml-streaming is not installed: run scripts/peer"),
]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Datasets of the peer, every compression and hash, and a seekable one of ours."""
    folder = tmp_path_factory.mktemp("stored")
    peer("write", folder)
    write(folder / "ours-seekable", "zstd", ["sha1"], frame=4096)
    return folder


@pytest.fixture(scope="module")
def mounted(stored: Path, rclone: StorageServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """All of them behind one mount of their common folder."""
    rclone.put_tree("peers", stored)
    with Host(tmp_path_factory.mktemp("host"), rclone.variables) as host:
        yield host.mounted(rclone.url("peers"))


def plain(dataset: LocalDataset) -> list[dict[str, Any]]:
    """All samples, values as text."""
    return [{name: samples.plain(value) for name, value in dataset[at].items()} for at in range(len(dataset))]


def names() -> list[str]:
    """The folders of MDS datasets."""
    theirs = [f"mds-{compression}-{len(hashes)}" for compression in samples.COMPRESSIONS for hashes in samples.HASHES]
    return [name.replace(":", "_") for name in theirs] + ["ours-seekable"]


@pytest.mark.parametrize("name", names())
def test_mounted_shards_are_the_raw_shards(stored: Path, mounted: Path, name: str) -> None:
    """Every shown file is the peer's raw shard byte for byte, and our reader on the mount gives the same values."""
    _, files = raw_files(stored / name)
    shown = {path.name: path.read_bytes() for path in (mounted / name).iterdir() if path.name != "index.json"}
    assert shown == files
    assert plain(LocalDataset(str(mounted / name))) == values(stored / name)


@pytest.mark.parametrize("form", ["json", "csv", "tsv", "xsv"])
def test_line_formats_are_shown_with_both_files(stored: Path, mounted: Path, form: str) -> None:
    """Data and meta files of a compressed split dataset are shown decompressed, and read."""
    name = f"{form}-zstd"
    _, files = raw_files(stored / name)
    shown = {path.name: path.read_bytes() for path in (mounted / name).iterdir() if path.name != "index.json"}
    assert shown == files
    assert plain(LocalDataset(str(mounted / name))) == values(stored / name)


@pytest.mark.parametrize("name", ["mds-None-1", "mds-zstd-1", "mds-gz-1", "ours-seekable"])
def test_the_peer_reads_an_epoch_through_the_mount(stored: Path, mounted: Path, name: str) -> None:
    """StreamingDataset of mosaicml-streaming with default arguments: every sample of a shuffled epoch, right values."""
    expected = json.loads(json.dumps(values(stored / name)))
    found = json.loads(peer("epoch", mounted / name))
    assert sorted(found, key=json.dumps) == sorted(expected, key=json.dumps)
