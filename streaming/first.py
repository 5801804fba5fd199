"""Fetched all at once: the samples that an iteration begins with, or a whole shard.

A reader that asks for one sample after the other waits for each: a batch of a shuffled order may be in as many shards
as it has samples, and each needs its shard's offsets first. Asked for together they take two requests' time, and what
follows them is the business of the engine, which knows the order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from streaming.cached import EngineFolder
from streaming.mds.layout import head_size

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from streaming.mixing import Mix
    from streaming.reader import Shards

__all__ = ["bring", "bring_shard"]


def bring(mix: Mix, ids: NDArray[np.int64]) -> None:
    """Return when these samples are in the caches, as far as they can be; what is wrong with one its reader hears."""
    for part, _, own in mix.split(ids):
        if isinstance(part.folder, EngineFolder) and len(own):
            _bring(part, part.folder, own)


def bring_shard(part: Shards, number: int) -> int:
    """Return when all of a shard is in the cache, as far as it can be; bytes of its files that were not."""
    folder, tables = part.folder, part.tables
    if not isinstance(folder, EngineFolder):
        return 0
    row, brought = int(tables.shards["file"][number]), 0
    for file in range(row, row + 1 + part.schema(number).is_split):
        size = int(tables.files["size"][file])
        if not folder.is_here(file):
            brought += size
            step = max(folder.window, 1)
            all(folder.bring([(file, at, min(step, size - at))]) for at in range(0, size, step))
    return brought


def _bring(part: Shards, folder: EngineFolder, own: NDArray[np.int64]) -> None:
    tables = part.tables
    shards, places = tables.shard_of_sample(own)
    single = np.array([schema["format"] == "mds" for schema in tables.schemas], np.bool_)[
        tables.shards["schema"][shards]
    ]
    shards, places = shards[single], places[single]
    found = np.unique(shards)
    files = tables.shards["file"][found].tolist()
    samples = tables.shards["samples"][found].tolist()
    heads = [(file, 0, head_size(count)) for file, count in zip(files, samples, strict=True)]
    if folder.bring(heads):
        folder.bring(
            [
                (int(tables.shards["file"][shard]), int(offsets[0]), int(offsets[1] - offsets[0]))
                for shard, place in zip(shards.tolist(), places.tolist(), strict=True)
                if (offsets := folder.words(int(tables.shards["file"][shard]), 4 + 4 * place, 2)) is not None
            ],
            samples=True,
        )
