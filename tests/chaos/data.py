"""The data of a chaos run, and where everything lies: three datasets with other bytes in each, in each stored form."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from streaming import MDSWriter
from tests.mount.host import raw_shards
from tests.servers.base import StorageServer

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FORMS", "SAMPLES", "Places", "write"]

KIB = 1 << 10
# How the shards of each dataset are stored.
FORMS: dict[str, dict[str, str]] = {
    "raw": {},
    "seekable": {"compression": "zstd", "frame": "64kb"},
    "single": {"compression": "zstd"},
}
SAMPLES = 900
LARGEST = 48 * KIB


@dataclass(frozen=True, slots=True)
class Places:
    """The folders of a run."""

    home: Path

    @property
    def bucket(self) -> Path:
        """What the server serves."""
        return self.home / "served" / StorageServer.bucket

    @property
    def truth(self) -> Path:
        """The same datasets decompressed by the reference decoders: a folder per form."""
        return self.home / "truth"

    @property
    def mountpoint(self) -> Path:
        """Where the datasets are mounted."""
        return self.home / "mnt"

    @property
    def logs(self) -> Path:
        """What every process says."""
        return self.home / "logs"

    def filesystem(self, name: str) -> Path:
        """The filesystem of a cache's own: of the `mount`, or of the readers with a `remote`."""
        return self.home / f"fs-{name}"

    def cache(self, name: str) -> Path:
        """The cache directory in it."""
        return self.filesystem(name) / "cache"


def write(places: Places) -> None:
    """Samples {data, id} of 4 to 48 KiB, half of it random; ids go on from one dataset to the next."""
    for number, (form, options) in enumerate(FORMS.items()):
        rng = np.random.default_rng(number)
        stored, truth = places.bucket / form, places.truth / form
        columns = {"data": "bytes", "id": "int"}
        with MDSWriter(columns=columns, out=str(stored), size_limit=1536 * KIB, hashes=["sha1"], **options) as writer:
            for sample in range(number * SAMPLES, (number + 1) * SAMPLES):
                half = rng.bytes(int(rng.integers(2 * KIB, LARGEST // 2)))
                writer.write({"data": half + half[::-1], "id": sample})
        truth.mkdir(parents=True)
        shutil.copy(stored / "index.json", truth)
        for name, raw in raw_shards(stored).items():
            (truth / name).write_bytes(raw)
