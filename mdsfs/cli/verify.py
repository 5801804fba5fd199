"""`mdsfs verify`: compares every shard of a source, or what a cache holds, with its hashes."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING

from streaming.errors import ShardCorruptError
from streaming.sizes import format_size

from .arguments import positive_int
from .cached import add_source_or_cache, default_jobs, is_of_source
from .progress import Progress
from .store import add_store_options, open_source, remote_options

if TYPE_CHECKING:
    import argparse

    from mdsfs.contents.checking import CheckedCache
    from mdsfs.source.checking import Checked

__all__ = ["add_parser", "run"]

EXAMPLES = """\
examples:
  mdsfs verify s3://bucket/dataset
  mdsfs verify /mnt/ds
  mdsfs verify --cache-dir /nvme/cache --json

A source is read as a whole: sizes, hashes, what the files hold once decompressed, and the tables of the samples. Of a
cache every complete file is read. Each bad shard is one line of the output, and makes the exit code 6.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "verify",
        help="compare every shard with its hashes: of a source, or in a cache",
        description="Compare every shard of a source, or what is in the cache of a mount, with its hashes.",
        epilog=EXAMPLES,
    )
    add_source_or_cache(parser)
    parser.add_argument(
        "--jobs", metavar="N", type=positive_int, help="shards at a time; default: a CPU each, at most 8"
    )
    parser.add_argument("--json", action="store_true", help="what was found as a document")
    add_store_options(parser)


def run(args: argparse.Namespace) -> int:
    """Verify, and say what is wrong."""
    found = _source(args) if is_of_source(args, "verify") else _cache(args)
    if args.json:
        print(json.dumps(dataclasses.asdict(found), indent=1))
    else:
        for each in found.bad:
            print(f"bad  {each.shard}: {each.problem}")
        print(_told(found))
    return ShardCorruptError.exit_code if found.bad else 0


def _source(args: argparse.Namespace) -> Checked:
    from mdsfs.source.checking import check_source
    from mdsfs.source.datasets import find_datasets

    remote = open_source(args.place, remote_options(args))
    datasets = find_datasets(remote)
    with Progress("verify") as bar:
        found = check_source(remote, datasets, jobs=args.jobs or default_jobs(), begin=bar.begin, progress=bar.add)
    for warning in found.warnings:
        print(f"mdsfs: warning: {warning}", file=sys.stderr)
    return found


def _cache(args: argparse.Namespace) -> CheckedCache:
    from mdsfs.contents.checking import check_cache
    from mdsfs.contents.doors import open_door

    from .cached import chosen, place_of

    args.mountpoint = args.place
    place, _ = place_of(args)
    with open_door(place.cache_dir) as door, chosen(door, place, ()) as every, Progress("verify") as bar:
        touched = [(folder, contents, contents.touched()) for folder, contents, _ in every]
        return check_cache(door, touched, jobs=args.jobs or default_jobs(), begin=bar.begin, progress=bar.add)


def _told(found: Checked | CheckedCache) -> str:
    from mdsfs.source.checking import Checked

    bad = f"{len(found.bad)} bad" if found.bad else "none bad"
    size = format_size(found.bytes)
    unhashed = f", {found.unhashed} without a hash" if found.unhashed else ""
    if isinstance(found, Checked):
        return f"{found.shards} shards of {found.datasets} datasets, {found.samples} samples, {size}{unhashed}: {bad}"
    partial = f", {found.partial} partial ones can't be compared" if found.partial else ""
    gone = f", {found.gone} went while they were read" if found.gone else ""
    return f"{found.checked} complete files, {size}{unhashed}{partial}{gone}: {bad}"
