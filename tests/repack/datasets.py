"""Small datasets of every format to be repacked, and what must be the same afterwards."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from streaming.local import LocalDataset
from streaming.mds.index import parse_index
from streaming.writer import CSVWriter, JSONWriter, MDSWriter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from streaming.mds.index import Index

__all__ = ["WRITERS", "files_of", "index_of", "samples_of", "write_csv", "write_json", "write_mds"]

SAMPLES = 60


def write_mds(folder: Path, *, samples: int = SAMPLES, size: int = 2000, **options: Any) -> None:
    """Shards of about 20 KB, half of which can be compressed."""
    seed = random.Random(samples)
    options = {"size_limit": 20_000, "hashes": "sha1"} | options
    with MDSWriter(columns={"x": "bytes", "i": "int"}, out=folder, **options) as writer:
        for number in range(samples):
            varied = seed.randrange(size)
            writer.write({"x": seed.randbytes(varied) + bytes(size - varied), "i": number})


def write_json(folder: Path, **options: Any) -> None:
    """Split shards: a data and a meta file each."""
    options = {"size_limit": 500, "hashes": "sha1"} | options
    with JSONWriter(columns={"i": "int", "t": "str"}, out=folder, **options) as writer:
        for number in range(SAMPLES):
            writer.write({"i": number, "t": "text " * (number % 7)})


def write_csv(folder: Path, **options: Any) -> None:
    """Split shards that begin with a line of names."""
    with CSVWriter(columns={"i": "int"}, out=folder, **({"size_limit": 100, "hashes": "sha1"} | options)) as writer:
        for number in range(SAMPLES):
            writer.write({"i": number})


WRITERS: dict[str, Callable[..., None]] = {"mds": write_mds, "json": write_json, "csv": write_csv}


def index_of(folder: Path) -> Index:
    """The folder's index."""
    return parse_index((folder / "index.json").read_bytes())


def samples_of(folder: Path) -> list[dict[str, Any]]:
    """All samples in their order."""
    return list(LocalDataset(local=str(folder)))


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
