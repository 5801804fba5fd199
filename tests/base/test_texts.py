"""Errors and warnings that programs match by their text begin as mosaicml-streaming's do."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from streaming import Stream, StreamingDataset
from streaming.base.partition import get_partitions
from streaming.base.shuffle import get_shuffle
from streaming.base.world import World
from tests.dataset.samples import write

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ORDER: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: get_partitions("orig", 10, 3, 2, 1, 1, 1),
        "Either canonical or physical nodes must be evenly divisible by the other, otherwise striping slices of shards "
        "over nodes may lead to each node downloading all shards",
    ),
    (
        lambda: get_partitions("relaxed", 100, 2, 3, 1, 1, 7, 0, 2),
        "A global batch size of 21 is not evenly divisible by the initial total number of devices of 2. Make sure that "
        "when using the `relaxed` partitioning algorithm, the global batch size does not change during resumption of "
        "training.",
    ),
    (
        lambda: get_partitions("orig", 10, 1, 1, 1, 1, 1, 100),
        "Resuming further into the dataset (100) than it has samples (10)",
    ),
    (
        lambda: get_shuffle("py1e", np.array([1]), 2, 1, 0),
        "The number of samples assigned to a canonical node is 0. This very likely indicates that the number of "
        "samples in this stream is less than the number of canonical nodes, which is 2.",
    ),
    (lambda: World(2, 4, 2, 3).replicate(3), "World size must be divisible by your replication factor."),
    (lambda: World(2, 4, 2, 3).replicate(0), "Replication factor must be positive."),
]


@pytest.mark.parametrize(("refused", "text"), ORDER)
def test_what_an_order_refuses(refused: Callable[[], Any], text: str) -> None:
    """Partition, shuffle and replication."""
    with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
        refused()


def test_warnings_of_an_order() -> None:
    """Few samples for many nodes, and blocks that are smaller than shards."""
    with pytest.warns(UserWarning, match="^Trying to partition 1 samples over 4 canonical nodes. This will result in"):
        get_partitions("orig", 1, 4, 1, 1, 1, 1)
    with pytest.warns(UserWarning, match="^Shuffle block size was smaller than shard size for some shards. This will"):
        get_shuffle("py1e", np.array([100, 100]), 1, 1, 0, 10)


STREAMS: list[tuple[dict[str, Any], tuple[dict[str, Any], dict[str, Any]], str]] = [
    (
        {"batching_method": "stratified"},
        ({"proportion": 0.99}, {"proportion": 0.01}),
        "Number of samples for stream 1 is 0 because the portion of this stream in the global batch, which is of size "
        "4, is too low. Please increase the global batch size or increase the proportion of total samples that come "
        "from stream 1.",
    ),
    (
        {"batching_method": "per_stream"},
        ({"choose": 2}, {}),
        "Stream with index 0 does not have an adequate number of samples to construct a complete global batch. "
        "Training will occur without any samples from this stream.",
    ),
    (
        {"batching_method": "device_per_stream"},
        ({"choose": 2}, {}),
        "Stream with index 0 does not have an adequate number of samples to construct even a single device batch of "
        "size 4. Training will occur without any samples from this stream!",
    ),
    (
        {"batching_method": "device_per_stream", "shuffle": True, "shuffle_block_size": 10},
        ({"proportion": 0.05}, {"proportion": 0.95}),
        "Samples from stream 0 are not being used. Please either increase the `shuffle_block_size` from 10, or "
        "increase the stream proportion from 0.05.",
    ),
]


@pytest.mark.filterwarnings("ignore:Shuffle block size was smaller")
@pytest.mark.parametrize(("options", "weights", "text"), STREAMS)
def test_streams_that_do_not_fill_a_batch(
    tmp_path: Path, options: dict[str, Any], weights: tuple[dict[str, Any], dict[str, Any]], text: str
) -> None:
    """Raised when the epoch is composed."""
    streams = [Stream(local=write(tmp_path / f"{n}", [50]), **weight) for n, weight in enumerate(weights)]
    with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
        list(StreamingDataset(streams=streams, batch_size=4, **options))


def test_arguments_of_a_dataset(tmp_path: Path) -> None:
    """What is said of arguments that do not fit each other, or the data."""
    folder = write(tmp_path / "a")
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "You must provide either `streams` or `remote`/`local`, but not both."),
        ({"streams": []}, "You must provide either `streams` or `remote`/`local`, but not both."),
        (
            {"streams": [Stream(local=folder)], "local": folder},
            "You must provide either `streams` or `remote`/`local`, but not both.",
        ),
        ({"streams": [Stream(local=folder)] * 2}, f"Reused local directory: ['{folder}']. Provide a different one."),
        ({"remote": "ss4://a/b", "local": str(tmp_path / "b")}, "Unsupported remote path: ss4://a/b"),
    ]
    for arguments, text in cases:
        with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
            StreamingDataset(batch_size=4, **arguments)


@pytest.mark.parametrize(
    ("index", "error", "text"),
    [
        ("", ValueError, "Index file at {} is empty or corrupted. "),
        ('{"version": 2', ValueError, "Index file at {} is empty or corrupted. "),
        ('{"version": 3, "shards": []}', ValueError, "Unsupported streaming data version: 3. Expected version 2."),
        ('{"version": 2, "shards": []}', RuntimeError, "Stream contains no samples: {}."),
    ],
)
def test_an_index_that_cannot_be(tmp_path: Path, index: str, error: type[Exception], text: str) -> None:
    """What is said of an index that is empty, cut off, of another version, or without samples."""
    path = tmp_path / "index.json"
    path.write_text(index)
    with pytest.raises(error, match=f"^{re.escape(text.format(path))}"):
        StreamingDataset(local=str(tmp_path), batch_size=4)
