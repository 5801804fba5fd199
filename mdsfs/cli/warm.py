"""`mdsfs warm`: loads shards into the cache before anybody reads them, and pins those that must stay."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from streaming.engine.client import EngineClient
from streaming.sizes import format_size

from .arguments import positive_int
from .cached import add_place, chosen, default_jobs, place_of
from .progress import Progress

if TYPE_CHECKING:
    import argparse

    from mdsfs.contents.doors import EngineDoor

    from .cached import Chosen

__all__ = ["add_parser", "run"]

EXAMPLES = """\
examples:
  mdsfs warm /mnt/ds
  mdsfs warm /mnt/ds 'train/shard.000*' --pin
  mdsfs warm /mnt/ds --unpin

A pinned shard stays in the cache whatever is read beside it, also when the engine is started again, until it is
unpinned. All pinned shards together must fit into the cache limit. Patterns are of paths as the mount shows them; with
--cache-dir of URLs, or of names alone. Quote them, so that the shell leaves them alone. Where a dataset was written
anew, pins stay with what the cache holds of the old one: mdsfs warm --cache-dir DIR --unpin.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "warm",
        help="load shards into the cache, pin those that must stay",
        description="Load shards into the cache before anybody reads them.",
        epilog=EXAMPLES,
    )
    add_place(parser, globs="which files; default: all")
    pins = parser.add_mutually_exclusive_group()
    pins.add_argument("--pin", action="store_true", help="they must stay in the cache from now on")
    pins.add_argument("--unpin", action="store_true", help="they need not stay any more; nothing is loaded")
    parser.add_argument(
        "--jobs", metavar="N", type=positive_int, help="shards at a time; default: a CPU each, at most 8"
    )
    parser.add_argument("--json", action="store_true", help="what was done as a document")


def run(args: argparse.Namespace) -> int:
    """Load, pin or unpin; the engine must be running."""
    from mdsfs.contents.doors import EngineDoor

    place, globs = place_of(args)
    with EngineClient.connect(place.cache_dir, client="cli") as client:
        door = EngineDoor(client)
        with chosen(door, place, globs) as found:
            done = _unpin(door, found) if args.unpin else _load(door, found, args)
    print(json.dumps(done, indent=1) if args.json else _told(done))
    return 0


def _unpin(door: EngineDoor, found: Chosen) -> dict[str, Any]:
    return {"unpinned": sum(door.unpin(folder, numbers) for folder, _, numbers in found)}


def _load(door: EngineDoor, found: Chosen, args: argparse.Namespace) -> dict[str, Any]:
    from mdsfs.contents.warming import check_fits, warm

    check_fits(door, found)
    done: dict[str, Any] = {}
    if args.pin:
        done["pinned_bytes"] = _pin(door, found)
    with Progress("warm") as bar:
        warmed = warm(door, found, jobs=args.jobs or default_jobs(), begin=bar.begin, progress=bar.add)
    return {"files": warmed.files, "bytes": warmed.bytes, **done}


def _pin(door: EngineDoor, found: Chosen) -> int:
    """Pin all or none: what was pinned before stays so in any case."""
    pinned, fresh = 0, []
    try:
        for folder, contents, numbers in found:
            new = [number for number in numbers if not contents.row(number).pinned]
            pinned = door.pin(folder, numbers)
            fresh.append((folder, new))
    except BaseException:
        for folder, new in fresh:
            door.unpin(folder, new)
        raise
    return pinned


def _told(done: dict[str, Any]) -> str:
    if "unpinned" in done:
        return f"{done['unpinned']} files unpinned"
    pins = f", pins take {format_size(done['pinned_bytes'])}" if "pinned_bytes" in done else ""
    return f"{done['files']} files loaded, {format_size(done['bytes'])}{pins}"
