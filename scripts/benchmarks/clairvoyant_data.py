"""The datasets of `scripts/bench clairvoyant`, and what an epoch of each must cost: traces, windows, bounds."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from mdsfs.plan.bounds import Belady, live_window
from streaming import MDSWriter
from streaming.mds.seekable import SeekTable
from streaming.order import OrderSpec, StreamSpec, World, rank_order

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

KIB, MIB = 1 << 10, 1 << 20
# Of every sample beside its data: the id, and the length of the data.
EXTRA = 12


@dataclass(frozen=True)
class Recipe:
    """Samples of `size` bytes, give or take a quarter, in shards of `shard` bytes; stored raw, or as `writer` says."""

    samples: int
    size: int
    shard: int
    writer: dict[str, Any] = field(default_factory=dict)


RECIPES = {
    "blocks": Recipe(8192, 64 * KIB, 2 * MIB),
    "tiny": Recipe(4096, 16 * KIB, 1 * MIB),
    "s4": Recipe(16384, 4 * KIB, 4 * MIB),
    "s16": Recipe(8192, 16 * KIB, 8 * MIB),
    "s64": Recipe(4096, 64 * KIB, 16 * MIB),
    "s200": Recipe(768, 200 * KIB, 16 * MIB),
    "frames": Recipe(2048, 64 * KIB, 16 * MIB, {"compression": "zstd:3", "frame": "256kb"}),
    "frame-each": Recipe(2048, 64 * KIB, 16 * MIB, {"compression": "zstd:3", "frame": "sample"}),
    "large": Recipe(8192, 64 * KIB, 64_000_000),
}


@dataclass
class Data:
    """A dataset that has been written: `name` is its key in the bucket."""

    name: str
    folder: Path
    recipe: Recipe

    @cached_property
    def index(self) -> list[dict[str, Any]]:
        shards: list[dict[str, Any]] = json.loads((self.folder / "index.json").read_text())["shards"]
        return shards

    @cached_property
    def index_bytes(self) -> int:
        return (self.folder / "index.json").stat().st_size

    @cached_property
    def samples(self) -> NDArray[np.int64]:
        """int64 [shards]."""
        return np.array([shard["samples"] for shard in self.index], np.int64)

    @cached_property
    def stored(self) -> NDArray[np.int64]:
        """int64 [shards] bytes."""
        return np.array([(shard["zip_data"] or shard["raw_data"])["bytes"] for shard in self.index], np.int64)

    @property
    def bytes(self) -> int:
        """All shards as they are stored: U of an epoch that reads everything."""
        return int(self.stored.sum())

    @cached_property
    def sample_bytes(self) -> NDArray[np.int64]:
        """int64 [samples]: what each takes in its raw shard."""
        sizes = []
        for shard in self.index:
            path = self.folder / shard["raw_data"]["basename"]
            if path.exists():
                head = path.read_bytes()[: 4 * (shard["samples"] + 2)]
                sizes.append(np.diff(np.frombuffer(head, np.uint32, shard["samples"] + 1, 4)).astype(np.int64))
        return np.concatenate(sizes)

    def shard_of(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The shard of each sample id."""
        return np.searchsorted(np.cumsum(self.samples), ids, side="right")

    def order(self, arguments: dict[str, Any], epoch: int) -> NDArray[np.int64]:
        """Sample ids of one rank's epoch, int64 [uses], with one worker."""
        spec = OrderSpec(
            (StreamSpec(self.samples, int(self.samples.sum())),),
            arguments["batch_size"],
            1,
            arguments["shuffle_seed"],
            True,
            block_size=arguments.get("shuffle_block_size") or OrderSpec.default_block_size(1),
        )
        ids = rank_order(spec, World(1, 1, 1, 0), epoch).reshape(-1)
        return ids[ids >= 0]

    def window(self, arguments: dict[str, Any]) -> int:
        """The live window of whole shards, in bytes."""
        return live_window(self.shard_of(self.order(arguments, 0)), self.stored)

    def belady(self, arguments: dict[str, Any], limit: int, epochs: int) -> int:
        """Bytes of whole shards that the best policy fetches in epochs 1 to `epochs - 1`."""
        cache = Belady(self.stored, limit)
        traces = [self.shard_of(self.order(arguments, epoch)) for epoch in range(epochs + 1)]
        return sum([cache.epoch(traces[at], traces[at + 1]) for at in range(epochs)][1:])

    def frames_touched(self, arguments: dict[str, Any]) -> int:
        """Stored bytes of the frames that each batch of epoch 0 touches, each once a batch."""
        tables = [self._frames(shard) for shard in self.index]
        first = np.cumsum(self.samples) - self.samples
        # samples are of about one size, and frames are cut between them: a sample's frame is found by its share
        ids, total = self.order(arguments, 0), 0
        shards = self.shard_of(ids)
        for at in range(0, len(ids), arguments["batch_size"]):
            touched = set()
            for number, shard in zip(
                ids[at : at + arguments["batch_size"]], shards[at : at + arguments["batch_size"]], strict=True
            ):
                table, inside = tables[shard], int(number - first[shard])
                offset = self._offsets(shard)[inside]
                frame = int(np.searchsorted(table.raw_at, offset, side="right")) - 1
                touched.add((int(shard), frame))
            total += sum(int(tables[shard].zip_at[frame + 1] - tables[shard].zip_at[frame]) for shard, frame in touched)
        return total

    def _offsets(self, shard: int) -> NDArray[np.int64]:
        return self._heads[shard]

    @cached_property
    def _heads(self) -> list[NDArray[np.int64]]:
        from streaming.mds.compression import decompress

        heads = []
        for shard in self.index:
            stored = (self.folder / shard["zip_data"]["basename"]).read_bytes()
            raw = decompress(shard["compression"], stored, shard["raw_data"]["bytes"])
            heads.append(np.frombuffer(raw, np.uint32, shard["samples"], 4).astype(np.int64))
        return heads

    def _frames(self, shard: dict[str, Any]) -> SeekTable:
        stored = (self.folder / shard["zip_data"]["basename"]).read_bytes()
        table = SeekTable.parse(stored, len(stored), shard["raw_data"]["bytes"])
        assert table is not None, "the shard is not seekable"
        return table


def write(name: str, folder: Path) -> Data:
    """The dataset `name`, written with our own writer; incompressible unless it is to be compressed."""
    recipe = RECIPES[name]
    rng = np.random.default_rng(7)
    columns = {"id": "int", "data": "bytes"}
    with MDSWriter(columns=columns, out=str(folder), size_limit=recipe.shard, **recipe.writer) as writer:
        for number in range(recipe.samples):
            size = int(recipe.size * rng.uniform(0.75, 1.25))
            half = rng.bytes(size // 2 - 8)
            data = half + half if recipe.writer else half + rng.bytes(len(half))
            mark = number.to_bytes(8, "little")
            writer.write({"id": number, "data": mark + data + mark})
    return Data(name, folder, recipe)
