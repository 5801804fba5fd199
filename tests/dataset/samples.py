"""Small datasets whose sample i has id i."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streaming import MDSWriter

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path


def write(folder: Path, shards: Sequence[int] = (5, 3), first: int = 0, **options: Any) -> str:
    """Samples {id, text} in shards of these sizes."""
    number = first
    with MDSWriter(columns={"id": "int", "text": "str"}, out=str(folder), **options) as writer:
        for size in shards:
            for number in range(number, number + size):  # noqa: B020
                writer.write({"id": number, "text": f"sample {number}"})
            number += 1
            writer.flush_shard()
    return str(folder)


def ids(samples: Iterable[Any]) -> list[int]:
    """The ids of samples."""
    return [sample["id"] for sample in samples]


def flat(batches: Iterable[Any]) -> list[list[int]]:
    """The ids of collated batches."""
    return [batch["id"].tolist() for batch in batches]
