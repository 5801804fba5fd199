"""Run by the interpreter of .peer: answers each line of standard input, a case as JSON, with what the peer computes."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from hashlib import sha256
from types import SimpleNamespace
from typing import Any

import numpy as np

from streaming import Stream, StreamingDataset
from streaming.base.batching import generate_work
from streaming.base.world import World

warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)


def answer(case: dict[str, Any]) -> dict[str, Any]:
    """The weights and the order of one case, or that it is refused."""
    world = World(*case["world"], 0).replicate(case["replication"])
    streams = [SimpleNamespace(**weight) for weight in case["weights"]]
    sizes = [np.array(shards, np.int64) for shards in case["shards"]]
    per_shard = np.concatenate(sizes)
    counts = np.array([len(shards) for shards in sizes])
    epoch_size = Stream.apply_weights.__func__(
        Stream, streams, np.array([shards.sum() for shards in sizes]), case["epoch_size"], case["seed"]
    )
    dataset = SimpleNamespace(
        streams=streams,
        num_streams=len(streams),
        epoch_size=epoch_size,
        samples_per_shard=per_shard,
        sample_offset_per_shard=per_shard.cumsum() - per_shard,
        shards_per_stream=counts,
        shard_offset_per_stream=counts.cumsum() - counts,
        batch_size=case["batch_size"],
        num_canonical_nodes=case["canonical_nodes"],
        shuffle_seed=case["seed"],
        shuffle=case["shuffle"],
        shuffle_algo=case["shuffle_algo"],
        shuffle_block_size=case["block_size"],
        partition_algo=case["partition_algo"],
        initial_physical_nodes=case["initial_nodes"],
        sampling_method=case["sampling_method"],
        sampling_granularity=case["granularity"],
        epoch_seed_change=case["shuffle"] and case["sampling_method"] == "balanced",
    )
    dataset.resample_streams = lambda *arguments: StreamingDataset.resample_streams(dataset, *arguments)
    order = generate_work(case["batching"], dataset, world, case["epoch"], case["drop"])
    return {
        "world": [world.num_nodes, world.ranks_per_node, world.workers_per_rank],
        "choose": [int(stream.choose) for stream in streams],
        "proportion": [float(stream.proportion).hex() for stream in streams],
        "shape": list(order.shape),
        "order": sha256(np.ascontiguousarray(order, "<i8").tobytes()).hexdigest(),
    }


for line in sys.stdin:
    try:
        said = answer(json.loads(line))
    except Exception as error:  # a refusal is an answer: the other side must refuse as well
        said = {"refused": type(error).__name__, "why": str(error)[:200]}
    print(json.dumps(said), flush=True)
