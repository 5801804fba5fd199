"""`mdsfs tune`: the kernel settings of a mount that only root may make, for a mount of another user."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mdsfs.config.layers import POSITIONAL, configurable
from mdsfs.errors import MountpointError
from mdsfs.mount.mountpoint import FSTYPE, find_mount
from mdsfs.mount.tuning import READAHEAD_KB, tune

if TYPE_CHECKING:
    import argparse

__all__ = ["add_parser", "run"]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "tune",
        help="set the kernel's read-ahead of a mount (root)",
        description="Make the kernel settings of a mount that only root may make: read-ahead, requests at once.",
        epilog="example:\n  mdsfs tune /mnt/ds",
    )
    parser.add_argument("mountpoint", **POSITIONAL, metavar="MOUNTPOINT")
    configurable(parser, "tune")


def run(args: argparse.Namespace) -> int:
    """Set what may be set, and print what holds then."""
    entry = find_mount(args.mountpoint)
    if entry is None or entry.fstype != FSTYPE:
        raise MountpointError(f"{args.mountpoint} is not a mount of mdsfs")
    found = tune(entry.device)
    print(f"read-ahead {found.readahead_kb} KiB, {found.max_background} requests at once")
    return 0 if found.readahead_kb == READAHEAD_KB else 1
