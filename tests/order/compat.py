"""Random runs, ordered by us and by mosaicml-streaming side by side (`scripts/compat`).

A case is plain data, drawn from a seed and its number alone, so that a difference can be looked at again.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
import warnings
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from streaming.order import OrderSpec, StreamSpec, Weight, World, epoch_order, rank_order, weigh

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".peer" / "bin" / "python"
BATCHING = ("random", "random", "per_stream", "stratified", "device_per_stream")
Case = dict[str, Any]
Answer = dict[str, Any]


def draw_case(seed: int, number: int) -> Case:
    """Case `number` of `seed`."""
    pick = random.Random(f"{seed}/{number}")
    nodes, ranks, workers = pick.choice((1, 1, 2, 3, 4, 6, 8)), pick.choice((1, 1, 2, 3, 4, 8)), pick.choice((1, 2, 3))
    canonical = pick.choice((nodes, nodes, 2 * nodes, 8 * nodes, max(nodes // 2, 1), 1, pick.randint(1, 12)))
    largest = pick.choice((1, 3, 10, 60, 400))
    shards = [
        [pick.randint(1, largest) for _ in range(pick.choice((1, 2, 5, 30)))] for _ in range(pick.choice((1, 1, 2, 4)))
    ]
    weights, epoch_size = _draw_weights(pick, shards)
    batch = pick.choice((1, 2, 3, 4, 7, 16))
    total = sum(map(sum, shards))
    drop = pick.choice((0, 0, batch * nodes * ranks * pick.randint(0, 4), pick.randint(0, total + 8)))
    return {
        "world": [nodes, ranks, workers],
        "replication": pick.choice((1, 1, 1, 2, ranks)),
        "shards": shards,
        "weights": weights,
        "epoch_size": epoch_size,
        "batch_size": batch,
        "canonical_nodes": canonical,
        "seed": pick.choice((0, 1, 9176, pick.randrange(2**31))),
        "shuffle": pick.random() < 0.8,
        "shuffle_algo": pick.choice(("naive", "py1s", "py2s", "py1br", "py1e")),
        "block_size": pick.choice((2, 8, 16, 100, 1000, 1 << 18, 4_000_000)),
        "partition_algo": pick.choice(("orig", "relaxed", "relaxed")),
        "initial_nodes": pick.choice((None, nodes, 1, 2, 3, 4)),
        "sampling_method": pick.choice(("balanced", "balanced", "fixed")),
        "granularity": pick.choice((1, 1, 2, 7, 256)),
        "batching": pick.choice(BATCHING),
        "epoch": pick.choice((0, 1, 2, 17)),
        "drop": drop,
    }


def _draw_weights(pick: random.Random, shards: list[list[int]]) -> tuple[list[dict[str, Any]], int | None]:
    total = sum(map(sum, shards))
    size = pick.choice((None, pick.randint(1, 3 * total)))
    match pick.choice(("none", "none", "proportion", "absolute")):
        case "proportion":
            return [{"proportion": pick.choice((1, 2, 0.3, pick.random() + 0.01))} for _ in shards], size
        case "absolute":
            kinds = ({}, {"repeat": pick.choice((1, 2, 0.5, 1.5, 2.25))}, {"choose": pick.randint(1, 2 * total)})
            weights = [pick.choice(kinds) for _ in shards]
            return weights, size if pick.random() < 0.1 else None
    return [{} for _ in shards], size


def ours(case: Case) -> Answer:
    """What streaming.order makes of a case; every rank's own part is compared with the whole on the way."""
    world = World(*case["world"], 0).replicate(case["replication"])
    sizes = [np.array(shards, np.int64) for shards in case["shards"]]
    weights = [Weight(**weight) for weight in case["weights"]]
    drawn = weigh(weights, np.array([shards.sum() for shards in sizes]), case["epoch_size"], case["seed"])
    spec = OrderSpec(
        streams=tuple(
            StreamSpec(shards, int(choose), float(proportion))
            for shards, choose, proportion in zip(sizes, drawn.choose, drawn.proportion, strict=True)
        ),
        batch_size=case["batch_size"],
        canonical_nodes=case["canonical_nodes"],
        seed=case["seed"],
        shuffle=case["shuffle"],
        shuffle_algo=case["shuffle_algo"],
        block_size=case["block_size"],
        partition_algo=case["partition_algo"],
        batching_method=case["batching"],
        sampling_method=case["sampling_method"],
        sampling_granularity=case["granularity"],
        initial_nodes=case["initial_nodes"],
    )
    order = epoch_order(spec, world, case["epoch"], case["drop"])
    for rank in range(world.num_ranks):
        place = World(world.num_nodes, world.ranks_per_node, world.workers_per_rank, rank * world.workers_per_rank)
        part = rank_order(spec, place, case["epoch"], case["drop"])
        np.testing.assert_array_equal(part, order[place.node, place.rank_of_node])
    return {
        "world": [world.num_nodes, world.ranks_per_node, world.workers_per_rank],
        "choose": [int(choose) for choose in drawn.choose],
        "proportion": [float(proportion).hex() for proportion in drawn.proportion],
        "shape": list(order.shape),
        "order": sha256(np.ascontiguousarray(order, "<i8").tobytes()).hexdigest(),
    }


def answer(case: Case) -> Answer:
    """`ours`, a refusal being an answer."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return ours(case)
    except ValueError as error:
        return {"refused": type(error).__name__, "why": str(error)[:200]}


def agree(mine: Answer, theirs: Answer) -> bool:
    """Equal; or both refuse, each in its own words."""
    return mine == theirs or ("refused" in mine and "refused" in theirs)


def compare(seed: int, cases: int | None, seconds: float | None) -> tuple[Counter[str], list[str]]:
    """Run cases until either limit: how many of each kind, and the differences as text."""
    counts: Counter[str] = Counter()
    different: list[str] = []
    start = time.monotonic()
    command = [PYTHON, "-P", "-W", "ignore", Path(__file__).with_name("peer_side.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as peer:
        assert peer.stdin is not None
        assert peer.stdout is not None
        number = 0
        while (cases is None or number < cases) and (seconds is None or time.monotonic() - start < seconds):
            case = draw_case(seed, number)
            peer.stdin.write(json.dumps(case) + "\n")
            peer.stdin.flush()
            mine, theirs = answer(case), json.loads(peer.stdout.readline())
            counts["cases"] += 1
            if not agree(mine, theirs):
                different.append(f"case {number} of seed {seed}: {json.dumps(case)}\n  ours {mine}\n  peer {theirs}")
            elif "refused" in mine:
                counts["refused by both"] += 1
            else:
                counts["equal"] += 1
                counts[case["batching"]] += 1
                counts[case["shuffle_algo"] if case["shuffle"] else "unshuffled"] += 1
            number += 1
        peer.stdin.close()
    return counts, different


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="scripts/compat", description="Compare our order with mosaicml-streaming's.")
    parser.add_argument("--cases", type=int, help="how many (3000 when --seconds is not given either)")
    parser.add_argument("--seconds", type=float, help="stop after so long")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, metavar="NUMBER", help="print one case and our answer")
    given = parser.parse_args()
    if given.only is not None:
        case = draw_case(given.seed, given.only)
        print(json.dumps(case), json.dumps(answer(case)), sep="\n")
        return 0
    cases = 3000 if given.cases is None and given.seconds is None else given.cases
    counts, different = compare(given.seed, cases, given.seconds)
    for text in different[:10]:
        print(text)
    print(", ".join(f"{name}: {count}" for name, count in counts.items()), f"different: {len(different)}", sep=", ")
    return 1 if different or not counts["equal"] else 0


if __name__ == "__main__":
    sys.exit(main())
