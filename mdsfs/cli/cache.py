"""`mdsfs cache`: lists what a cache holds, evicts files, or clears all of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mdsfs.errors import UsageError
from streaming.errors import CacheDirectoryError
from streaming.sizes import format_size

from .cached import add_place, chosen, place_of, shown_prefix

if TYPE_CHECKING:
    import argparse

    from mdsfs.contents.doors import Door

    from .cached import Chosen, Place

__all__ = ["add_parser", "run"]

EXAMPLES = """\
examples:
  mdsfs cache list /mnt/ds
  mdsfs cache evict /mnt/ds 'val/*'
  mdsfs cache clear --cache-dir /nvme/cache

No reader is disturbed: what is pinned, held or mapped by one stays, is named in the output, and makes the exit code 7.
Patterns are of paths as the mount shows them; with --cache-dir of URLs, or of names alone. Quote them.
"""
# Some of the chosen files had to stay.
STAYED = CacheDirectoryError.exit_code


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "cache",
        help="list what a cache holds, evict files, clear it",
        description="What a cache holds, and how to make it let go. Goes through the engine where one runs.",
        epilog=EXAMPLES,
    )
    acts = parser.add_subparsers(dest="act", metavar="ACT", required=True)
    for name, text, patterns in (
        ("list", "show what is in the cache", "only these files, one a line"),
        ("evict", "take files out of the cache", "which files"),
        ("clear", "take everything out of the cache", None),
    ):
        act = acts.add_parser(name, help=text, description=f"{text.capitalize()}.", epilog=EXAMPLES)
        add_place(act, globs=patterns)
        act.add_argument("--json", action="store_true", help="as a document")
        if name == "list":
            act.add_argument("-l", dest="long", action="store_true", help="every file of which something is there")


def run(args: argparse.Namespace) -> int:
    """Do what the sub-command says."""
    from mdsfs.contents.doors import open_door

    place, globs = place_of(args)
    if args.act == "evict" and not globs:
        raise UsageError("name what to evict, like 'shard.000*', or use mdsfs cache clear")
    with open_door(place.cache_dir) as door, chosen(door, place, globs) as found:
        if args.act == "list":
            return _list(args, place, found, files=bool(args.long or globs))
        return _evict(args, door, place, found)


def _list(args: argparse.Namespace, place: Place, found: Chosen, *, files: bool) -> int:
    from .listing import of_cache, render

    document = of_cache(place, found, files=files, absent=False)
    print(json.dumps(document, indent=1) if args.json else render(document))
    return 0


def _evict(args: argparse.Namespace, door: Door, place: Place, found: Chosen) -> int:
    evicted, files = 0, 0
    kept: list[dict[str, Any]] = []
    for folder, contents, numbers in found:
        # what is not there need not be asked for; of a whole clear the folder goes as well
        there = sorted(set(numbers).intersection(contents.touched()))
        done = door.evict(folder, there, forget=args.act == "clear")
        prefix = shown_prefix(place, folder)
        at = f"{prefix}/" if prefix else ""
        kept += [{"file": at + contents.tables.name(number), "reason": reason} for number, reason in done.kept]
        evicted += done.bytes
        files += len(there) - len(done.kept)
    if args.json:
        print(json.dumps({"files": files, "bytes": evicted, "kept": kept}, indent=1))
    else:
        for each in kept:
            print(f"kept  {each['file']}: {each['reason']}")
        print(f"{files} files evicted, {format_size(evicted)}" + (f", {len(kept)} stay" if kept else ""))
    return STAYED if kept else 0
