"""A cache directory with one small dataset in it, of which every byte is known."""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING

import pytest

from mdsfs.engine.store.directory import CacheStore, DatasetFolder, DatasetInfo, dataset_id
from streaming.mds.index import parse_index
from streaming.mds.tables import build_tables

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZES = (40_000, 8192, 4096 * 5 + 1)


def shard_bytes(n: int) -> bytes:
    """The content of shard `n`; no block of it is zeros."""
    return bytes(1 + (i * 7 + n) % 255 for i in range(SIZES[n]))


def index_json(hashes: list[str]) -> bytes:
    """An index of these shards."""
    shards = [
        {
            "column_encodings": ["bytes"],
            "column_names": ["b"],
            "column_sizes": [None],
            "compression": None,
            "format": "mds",
            "hashes": hashes,
            "raw_data": {
                "basename": f"shard.{n:05}.mds",
                "bytes": SIZES[n],
                "hashes": {name: hashlib.new(name, shard_bytes(n)).hexdigest() for name in hashes},
            },
            "samples": 1,
            "size_limit": None,
            "version": 2,
            "zip_data": None,
        }
        for n in range(len(SIZES))
    ]
    return json.dumps({"shards": shards, "version": 2}).encode()


def add_dataset(store: CacheStore, *, hashes: bool = True, version: str = "1", publish: Path | None = None) -> str:
    """A dataset folder, as the catalog would make it."""
    data = index_json(["sha1"] if hashes else [])
    staged = store.staging()
    staged.mkdir()
    (staged / "tables").write_bytes(b"".join(build_tables(parse_index(data))))
    (staged / "index.json").write_bytes(data)
    (staged / "index.orig").write_bytes(data)
    name = dataset_id("mds", "s3://b/d", None, version)
    return store.adopt(staged, DatasetInfo(name, "mds", "s3://b/d", "", etag=version), publish=publish)


def fill_file(folder: DatasetFolder, n: int, *, complete: bool = True, level: str = "shard") -> None:
    """What a fill of a whole file does to the store."""
    fd = folder.open_file(n)
    folder.begin_fill(n)
    os.pwrite(fd, shard_bytes(n), 0)
    folder.end_fill(n, fd, complete=complete, level=level, etag='"v1"')
    os.close(fd)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CacheStore]:
    with CacheStore.open(tmp_path / "cache") as opened:
        yield opened


@pytest.fixture
def folder(store: CacheStore) -> DatasetFolder:
    return store.folder(add_dataset(store))


def reopened(store: CacheStore, folder: DatasetFolder) -> DatasetFolder:
    """The folder as the next engine sees it: nothing is known but what is on disk."""
    publish = getattr(folder.layout, "publish", None)
    store.release(folder.id)
    return store.folder(folder.id, publish=publish)
