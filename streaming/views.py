"""`load_batch` without copying: values of varying size as views of the shards themselves."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from streaming.mds.shards import Schema

__all__ = ["as_stored", "collect_views"]


def as_stored(schema: Schema) -> Schema:
    """The schema whose values of varying size are their bytes, not decoded."""
    encodings = [
        encoding if size is not None else "bytes"
        for encoding, size in zip(schema.column_encodings, schema.column_sizes or (), strict=True)
    ]
    return replace(schema, column_encodings=tuple(encodings))


def collect_views(
    read: Callable[[int], dict[str, Any]], ids: Sequence[int], names: Sequence[str]
) -> dict[str, list[memoryview]]:
    """Column name to the values of these samples; `read` gives samples as stored."""
    samples = [read(sample_id) for sample_id in ids]
    return {name: [sample[name] for sample in samples] for name in names}
