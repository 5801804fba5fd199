"""`mount.mdsfs`: what mount(8), fstab and systemd call for `-t mdsfs` and `-t fuse.mdsfs`, with their exit codes.

It is `mdsfs mount` in another dress: `mount.mdsfs SOURCE MOUNTPOINT [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from mdsfs.errors import UsageError

from .arguments import expand_mount_options, split_mount_options
from .main import Parser, layered_parsers
from .main import main as mdsfs

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

# mount(8): 1 for wrong usage, 8 for an interruption, 32 for every mount that failed.
EXIT_CODES = {0: 0, 2: 1, 130: 8}
MOUNT_FAILED = 32


def main(argv: Sequence[str] | None = None) -> int:
    """Mount as mount(8) asks for it; returns one of its exit codes."""
    parser = Parser(
        prog="mount.mdsfs",
        description="Mount a dataset for mount(8): mount -t mdsfs SOURCE MOUNTPOINT -o OPTIONS",
        epilog="example:\n  mount -t mdsfs s3://bucket/dataset /mnt/ds -o cache_limit=50gb,allow_other,_netdev\n\n"
        "OPTIONS are the long options of `mdsfs mount`; `_` and `-` are alike.",
    )
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("mountpoint", metavar="MOUNTPOINT")
    parser.add_argument("-o", dest="lists", metavar="OPTIONS", action="append", default=[])
    parser.add_argument("-s", dest="sloppy", action="store_true", help="pass over options that are unknown")
    parser.add_argument("-f", dest="fake", action="store_true", help="do everything but mount")
    parser.add_argument("-n", action="store_true", help="nothing is written to /etc/mtab anyway")
    parser.add_argument("-v", action="store_true", help="nothing more is said")
    parser.add_argument("-t", metavar="TYPE", help="mdsfs or fuse.mdsfs: the same")
    parser.add_argument("-N", metavar="NAMESPACE", help="mount(8) has entered it already")
    try:
        args = parser.parse_args(argv)
        options = _known(args.lists) if args.sloppy else args.lists
        words = ["mount", *(f"-o{each}" for each in options), "--", args.source, args.mountpoint]
        if args.fake:
            layered_parsers()["mount"].parse_args(words[1:])
            return 0
    except UsageError as error:
        print(f"mount.mdsfs: {error}", file=sys.stderr)
        return EXIT_CODES[2]
    return EXIT_CODES.get(mdsfs(words), MOUNT_FAILED)


def _known(lists: list[str]) -> list[str]:
    """The options without those that nobody knows, one list each."""
    known = frozenset(option[2:] for option in layered_parsers()["mount"]._option_string_actions if option[2:])
    found = []
    for part in (part for text in lists for part in split_mount_options(text)):
        try:
            expand_mount_options([_quoted(part)], known)
        except UsageError:
            continue
        found.append(_quoted(part))
    return found


def _quoted(part: str) -> str:
    return part.replace("\\", "\\\\").replace('"', '\\"').replace(",", "\\,")
