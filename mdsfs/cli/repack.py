"""`mdsfs repack`: rewrites a dataset so that its shards can be read by range."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mdsfs.errors import UsageError
from streaming.sizes import format_size

from .arguments import positive_int
from .progress import Progress
from .store import add_store_options, open_source, remote_options

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from mdsfs.repack.run import Repacked
    from streaming.remote import Remote, RemoteOptions

__all__ = ["add_parser", "run"]

EXAMPLES = """\
examples:
  mdsfs repack s3://bucket/dataset s3://bucket/dataset-seekable
  mdsfs repack ./dataset s3://bucket/dataset --frame sample --compression zstd:7 --hashes xxh3_64

Samples, their order and the raw bytes of every shard stay the same; only how shards are stored changes. Every shard is
compared with its hashes while it is read, and read back after it was written. A repack that was stopped, however, goes
on where it was when the same command is run again. Each job gathers one shard in TMPDIR before it is written.
"""
# More would only wait for the same cores and the same network.
MOST_JOBS = 8


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "repack",
        help="rewrite a dataset so that its shards can be read by range",
        description="Rewrite a dataset, or a folder of several, with seekable zstd or uncompressed.",
        epilog=EXAMPLES,
    )
    parser.add_argument("source", metavar="SOURCE", help="s3://bucket/prefix, file:///path or a path")
    parser.add_argument("destination", metavar="DEST", help="the same, without a dataset in it")
    parser.add_argument(
        "--frame", metavar="SIZE", help="raw bytes of a frame, or `sample` for a frame a sample; default: 256kb"
    )
    parser.add_argument(
        "--compression", metavar="NAME", default="zstd", help="zstd, zstd:1 to zstd:22, or none; default: zstd (3)"
    )
    parser.add_argument("--hashes", metavar="NAMES", help="like sha1,xxh3_64; default: those that the shards have")
    parser.add_argument(
        "--jobs", metavar="N", type=positive_int, help=f"shards at a time; default: a CPU each, at most {MOST_JOBS}"
    )
    parser.add_argument("--json", action="store_true", help="what was done as a document")
    add_store_options(parser)
    destination = parser.add_argument_group("store of DEST, where it is another one").add_argument
    destination("--dest-endpoint-url", metavar="URL")
    destination("--dest-region", metavar="NAME")
    destination("--dest-profile", metavar="NAME")


def run(args: argparse.Namespace) -> int:
    """Repack, and say what was done."""
    from mdsfs.repack.run import repack
    from mdsfs.repack.target import Target

    target = Target.parse(args.compression, args.frame, args.hashes)
    options = remote_options(args)
    source = open_source(args.source, options)
    destination = open_source(args.destination, _destination_options(args, options))
    if options.endpoint_url == destination.options.endpoint_url:
        _check_apart(source, destination)
    jobs = args.jobs or min(MOST_JOBS, len(os.sched_getaffinity(0)))
    with Progress("repack") as progress:

        def started(total: int, done: int) -> Callable[[int], None]:
            progress.begin(total, done)
            return progress.add

        done = repack(source, destination, target, jobs=jobs, started=started)
    for warning in done.warnings:
        print(f"mdsfs: warning: {warning}", file=sys.stderr)
    print(json.dumps(dataclasses.asdict(done), indent=1) if args.json else _told(args.destination, done))
    return 0


def _destination_options(args: argparse.Namespace, options: RemoteOptions) -> RemoteOptions:
    chosen = {"endpoint_url": args.dest_endpoint_url, "region": args.dest_region, "profile": args.dest_profile}
    changes = {name: value for name, value in chosen.items() if value is not None}
    return dataclasses.replace(options, anonymous=False, **changes)


def _check_apart(source: Remote, destination: Remote) -> None:
    """Refuse a destination inside the source, or the other way round: one would become part of the other."""
    one, other = _place(source), _place(destination)
    if one == other or one.startswith(f"{other}/") or other.startswith(f"{one}/"):
        raise UsageError(f"SOURCE and DEST lie in each other ({source.url}, {destination.url}): choose another DEST")


def _place(remote: Remote) -> str:
    path = remote.local_path("x")
    return os.path.realpath(Path(path).parent) if path is not None else remote.url.rstrip("/")


def _told(destination: str, done: Repacked) -> str:
    lines = [
        f"{destination}: {done.shards} shards of {done.datasets} datasets, {done.samples} samples, "
        f"{format_size(done.raw_bytes)} raw, {format_size(done.stored_before)} before, "
        f"{format_size(done.stored_after)} now"
    ]
    if done.found_done:
        lines.append(f"{done.found_done} of the shards had been finished before")
    if done.left_out:
        lines.append(f"{done.left_out} objects that no index names were not copied")
    return "\n".join(lines)
