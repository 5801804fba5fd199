"""`mdsfs plan`: what reading a dataset will fetch, wait for and cost, before anything is read."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdsfs.errors import UsageError
from streaming.sizes import parse_size

from .arguments import positive_int, size
from .store import add_store_options, open_source, remote_options

if TYPE_CHECKING:
    from mdsfs.plan.workload import Workload

__all__ = ["add_parser", "rate", "run"]

EXAMPLES = """\
examples:
  mdsfs plan s3://bucket/dataset --cache-limit 200GiB --bandwidth 10gbit --latency 30ms --step-time 0.25 --shuffle
  mdsfs plan s3://bucket/dataset --cache-limit 2TiB --nodes 8 --ranks 8 --shuffle --plot plan.png
  mdsfs plan --synthetic shards=100000,samples_per_shard=1000,sample=64kb --nodes 64 --ranks 8 --shuffle --json

The planner is the engine's own, run forward in virtual time. What it assumes is in mdsfs/plan/PLAN.md.
"""

_ALGORITHMS = ("py1s", "py2s", "py1b", "py1br", "py1e", "naive")
_BITS = re.compile(r"\s*(\d+(?:\.\d*)?)\s*([kmgt]?)(?:bit|bps)(?:/s)?\s*", re.IGNORECASE | re.ASCII)
_TIME = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(us|ms|s|)\s*", re.ASCII)
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0}


def rate(text: str) -> float:
    """Bytes per second: a size (`125mb`, powers of 1024), or bits as networks count them (`10gbit`, powers of 1000)."""
    match = _BITS.fullmatch(text)
    try:
        if match:
            found = float(match[1]) * 1000.0 ** " kmgt".index(match[2].lower() or " ") / 8
        else:
            found = float(parse_size(text.removesuffix("/s")))
    except ValueError:
        found = 0.0
    if found < 1:
        raise argparse.ArgumentTypeError(f"expected a rate like 10gbit or 1.2gb, got {text!r}")
    return found


def duration(text: str) -> float:
    """Seconds of `30ms`, `0.03`, `2s`; zero is allowed."""
    match = _TIME.fullmatch(text)
    if not match or float(match[1]) >= 1e6:
        raise argparse.ArgumentTypeError(f"expected a time like 30ms or 0.5, got {text!r}")
    return float(match[1]) * _UNITS[match[2]]


def price(text: str) -> float:
    """Money, in any currency."""
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found < 1e9:
        raise argparse.ArgumentTypeError(f"expected a price like 0.09, got {text!r}")
    return found


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "plan",
        help="what reading a dataset will fetch, wait for and cost",
        description="Run the cache's planner forward in virtual time, for one host of a run.",
        epilog=EXAMPLES,
    )
    add = parser.add_argument
    add("source", metavar="SOURCE", nargs="?", help="s3://bucket/prefix, file:///path or a path: one dataset")
    add(
        "--synthetic",
        metavar="KEY=…,…",
        help="instead of SOURCE: shards=N,samples_per_shard=N,sample=SIZE; also ratio=STORED/RAW, "
        "form=raw|frames|whole, frame=SIZE",
    )
    add("--json", action="store_true", help="the outcome as a document")
    add("--plot", metavar="FILE.png", type=Path, help="a picture of it (needs the extra `plot`)")
    host = parser.add_argument_group("host and link").add_argument
    host("--cache-limit", metavar="SIZE", type=size, default=100 << 30, help="(100GiB)")
    host("--bandwidth", metavar="RATE", type=rate, default=1.25e9, help="from the store to a host (10gbit)")
    host("--latency", metavar="TIME", type=duration, default=0.03, help="until a request's first byte (30ms)")
    run_group = parser.add_argument_group("run").add_argument
    run_group("--epochs", metavar="N", type=positive_int, default=3, help="(3)")
    run_group("--step-time", metavar="TIME", type=duration, default=0.1, help="computing on a batch (100ms)")
    run_group("--nodes", metavar="N", type=positive_int, default=1, help="(1)")
    run_group("--ranks", "--ranks-per-node", metavar="N", type=positive_int, default=1, help="of a node (1)")
    run_group("--workers", metavar="N", type=int, default=0, help="of a rank; they share its batches (0)")
    run_group("--batch-size", metavar="N", type=positive_int, default=32, help="of a rank (32)")
    _add_order_options(parser)
    money = parser.add_argument_group("prices").add_argument
    money("--price-per-gb", metavar="PRICE", type=price, default=0.0, help="of 10⁹ bytes from the store (0)")
    money("--price-per-1000-requests", metavar="PRICE", type=price, default=0.0, help="(0)")
    add_store_options(parser)


def _add_order_options(parser: argparse.ArgumentParser) -> None:
    order = parser.add_argument_group("order", "as the arguments of StreamingDataset").add_argument
    order("--shuffle", action="store_true")
    order("--shuffle-algo", choices=_ALGORITHMS, default="py1e", help="(py1e)")
    order("--shuffle-seed", metavar="N", type=int, default=9176, help="(9176)")
    order("--shuffle-block-size", metavar="N", type=positive_int, help="samples (4,000,000 / canonical nodes)")
    order("--num-canonical-nodes", metavar="N", type=positive_int, help="(as many as nodes; py1s, py2s: 64 times)")
    order("--epoch-size", metavar="N", type=positive_int, help="samples of an epoch (all)")
    order("--sampling-method", choices=("balanced", "fixed"), default="balanced", help="(balanced)")
    order("--sampling-granularity", metavar="N", type=positive_int, default=1, help="(1)")


def run(args: argparse.Namespace) -> int:
    """Simulate, and print or draw."""
    if (args.source is None) == (args.synthetic is None):
        raise UsageError("give either a SOURCE or --synthetic (see mdsfs plan --help)")
    if args.workers < 0 or args.shuffle_seed < 0:
        raise UsageError("--workers and --shuffle-seed can't be negative")
    if args.plot is not None:
        from mdsfs.plan.picture import draw, require

        require(args.plot)
    from mdsfs.plan.forecast import forecast
    from mdsfs.plan.outcome import Prices
    from mdsfs.plan.report import render
    from mdsfs.plan.simulate import Host

    host = Host(args.cache_limit, args.bandwidth, args.latency, args.step_time)
    prices = Prices(args.price_per_gb, args.price_per_1000_requests)
    try:
        outcome = forecast(_workload(args), host, args.epochs, prices, _said(args))
    except MemoryError:
        raise UsageError("the order of such an epoch does not fit into this host's memory") from None
    if args.plot is not None:
        draw(outcome, args.plot)
    print(json.dumps(outcome.to_json(), indent=1) if args.json else render(outcome))
    return 0


def _workload(args: argparse.Namespace) -> Workload:
    from mdsfs.plan.workload import Workload
    from streaming.order import OrderSpec, StreamSpec, World

    from .described import of_source, of_text

    if args.synthetic is not None:
        described = of_text(args.synthetic)
    else:
        described = of_source(open_source(args.source, remote_options(args)))
    nodes = args.num_canonical_nodes or OrderSpec.default_canonical_nodes(args.shuffle_algo, args.nodes)
    if max(nodes, args.nodes) % min(nodes, args.nodes):
        raise UsageError(f"--num-canonical-nodes {nodes} and --nodes {args.nodes}: one must divide the other")
    shape = described.shape
    spec = OrderSpec(
        streams=(StreamSpec(shape.first[1:] - shape.first[:-1], args.epoch_size or shape.samples),),
        batch_size=args.batch_size,
        canonical_nodes=nodes,
        seed=args.shuffle_seed,
        shuffle=args.shuffle,
        shuffle_algo=args.shuffle_algo,
        block_size=args.shuffle_block_size or OrderSpec.default_block_size(nodes),
        sampling_method=args.sampling_method,
        sampling_granularity=args.sampling_granularity,
    )
    world = World(args.nodes, args.ranks, max(args.workers, 1), 0)
    return Workload(shape, described.stored, spec, world)


def _said(args: argparse.Namespace) -> dict[str, Any]:
    names = ("cache_limit", "bandwidth", "latency", "epochs", "step_time", "nodes", "ranks", "workers", "batch_size")
    order = ("shuffle", "shuffle_algo", "shuffle_seed", "shuffle_block_size", "num_canonical_nodes", "epoch_size")
    return {"source": args.source or args.synthetic} | {name: getattr(args, name) for name in (*names, *order)}
