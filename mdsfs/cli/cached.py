"""Which part of which cache a command is about: what a mount shows, or all that a cache directory holds."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mdsfs.errors import UsageError
from mdsfs.mount.mountpoint import FSTYPE, find_mount
from streaming.errors import EngineUnavailableError

from .arguments import default_cache_dir
from .status import of_mount

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from mdsfs.contents.doors import Door
    from mdsfs.contents.folder import Contents, Folder

    Chosen = list[tuple[Folder, Contents, list[int]]]

__all__ = [
    "Place",
    "add_place",
    "add_source_or_cache",
    "chosen",
    "default_jobs",
    "is_of_source",
    "place_of",
    "shown_prefix",
]

# More would only wait for the same cores and the same network.
MOST_JOBS = 8


@dataclass(frozen=True, slots=True)
class Place:
    """A cache directory; with the source, and where it is mounted, if a mount was named."""

    cache_dir: Path
    source: str | None = None
    mountpoint: str | None = None


def add_place(parser: argparse.ArgumentParser, *, globs: str | None = None) -> None:
    """Add MOUNTPOINT, --cache-dir and, where there is a text about them, patterns of files."""
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", nargs="?", help="a mount: what it shows")
    parser.add_argument(
        "--cache-dir", metavar="DIR", type=Path, help="all of a cache directory; default: as for mdsfs mount"
    )
    if globs is not None:
        parser.add_argument("globs", metavar="GLOB", nargs="*", help=globs)


def add_source_or_cache(parser: argparse.ArgumentParser) -> None:
    """Add SOURCE|MOUNTPOINT and --cache-dir, of which `is_of_source` wants one."""
    parser.add_argument("place", metavar="SOURCE|MOUNTPOINT", nargs="?", help="s3://bucket/prefix, a path, or a mount")
    parser.add_argument("--cache-dir", metavar="DIR", type=Path, help="all that is in a cache directory")


def is_of_source(args: argparse.Namespace, command: str) -> bool:
    """Whether a source was named rather than what a cache holds. Raises UsageError where none or both were."""
    if (args.place is None) == (args.cache_dir is None):
        raise UsageError(f"name a SOURCE or a MOUNTPOINT, or give --cache-dir (see mdsfs {command} --help)")
    if args.place is None or "://" in args.place:
        return args.place is not None
    entry = find_mount(args.place)
    return entry is None or entry.fstype != FSTYPE


def place_of(args: argparse.Namespace) -> tuple[Place, list[str]]:
    """The place, and the patterns as paths below it."""
    globs = list(getattr(args, "globs", ()))
    if args.cache_dir is not None and args.mountpoint is not None:
        globs.insert(0, args.mountpoint)
        return Place(args.cache_dir), globs
    if args.mountpoint is None:
        return Place(args.cache_dir or default_cache_dir()), globs
    document = of_mount(args.mountpoint)
    if "cache" not in document:
        raise EngineUnavailableError(
            f"the mount at {args.mountpoint} has no engine: {document['mount']['engine_error']}"
        )
    real = os.path.realpath(args.mountpoint)
    place = Place(Path(document["cache"]["dir"]), document["mount"]["source"].rstrip("/"), real)
    below = (f"{real}/", f"{args.mountpoint.rstrip('/')}/")
    return place, [glob.removeprefix(below[0]).removeprefix(below[1]) for glob in globs]


def shown_prefix(place: Place, folder: Folder) -> str | None:
    """What stands before its files' names: the path below the mountpoint, else the URL; None where it isn't shown."""
    url = folder.url.rstrip("/")
    if place.source is None:
        return url
    if not folder.users or not (url == place.source or url.startswith(f"{place.source}/")):
        return None
    return url[len(place.source) + 1 :]


@contextlib.contextmanager
def chosen(door: Door, place: Place, globs: Sequence[str]) -> Iterator[Chosen]:
    """The files of a place that fit the patterns, by folder. Raises UsageError for a pattern that fits nothing."""
    with contextlib.ExitStack() as opened:
        found: Chosen = []
        idle = set(globs)
        for folder in door.folders():
            if (prefix := shown_prefix(place, folder)) is None:
                continue
            contents = door.contents(folder)
            opened.callback(contents.close)
            numbers = contents.matching(prefix, globs)
            idle -= {glob for glob in idle if contents.matching(prefix, [glob])}
            if numbers or not globs:
                found.append((folder, contents, numbers))
        if idle:
            raise UsageError(f"no file fits {min(idle)!r} (mdsfs ls -l shows them; quote patterns)")
        yield found


def default_jobs() -> int:
    """One a CPU, within reason."""
    return min(MOST_JOBS, len(os.sched_getaffinity(0)))
