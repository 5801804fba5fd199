"""`mdsfs ls`: the datasets of a source, or what a cache holds of them."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from .cached import add_source_or_cache, is_of_source
from .store import add_store_options, open_source, remote_options

if TYPE_CHECKING:
    import argparse

__all__ = ["add_parser", "run"]

EXAMPLES = """\
examples:
  mdsfs ls s3://bucket/dataset
  mdsfs ls -l /mnt/ds
  mdsfs ls --cache-dir /nvme/cache --json
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "ls",
        help="list datasets and shards: of a source, or what is in a cache",
        description="List the datasets of a source, or of a mount or a cache directory what is in the cache of them.",
        epilog=EXAMPLES,
    )
    add_source_or_cache(parser)
    parser.add_argument("-l", dest="long", action="store_true", help="every file")
    parser.add_argument("--json", action="store_true", help="as a document; with -l every file")
    add_store_options(parser)


def run(args: argparse.Namespace) -> int:
    """List."""
    from .listing import render

    document = _of_source(args) if is_of_source(args, "ls") else _of_cache(args)
    for warning in document.pop("warnings", ()):
        print(f"mdsfs: warning: {warning}", file=sys.stderr)
    print(json.dumps(document, indent=1) if args.json else render(document))
    return 0


def _of_source(args: argparse.Namespace) -> dict[str, Any]:
    from mdsfs.source.datasets import find_datasets

    from .listing import of_source

    return of_source(args.place, find_datasets(open_source(args.place, remote_options(args))), files=args.long)


def _of_cache(args: argparse.Namespace) -> dict[str, Any]:
    from mdsfs.contents.doors import open_door

    from .cached import chosen, place_of
    from .listing import of_cache

    args.mountpoint = args.place
    place, _ = place_of(args)
    with open_door(place.cache_dir) as door, chosen(door, place, ()) as found:
        return of_cache(place, found, files=args.long, absent=True)
