"""`mdsfs umount`: unmounts, waits where asked, and says who is in the way."""

from __future__ import annotations

import json
import os
import select
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from mdsfs.config.layers import POSITIONAL, configurable
from mdsfs.errors import MountBusyError
from mdsfs.mount.mountpoint import answers, detach, unmount

from .arguments import seconds

if TYPE_CHECKING:
    import argparse

__all__ = ["add_parser", "run"]

# The kernel has no event for "no longer in use".
RETRY_SECONDS = 0.2
# How long an unmounted daemon may take to end before we return without it.
END_SECONDS = 10.0


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "umount",
        help="unmount, or say who still uses the mount",
        description="Unmount a mount of mdsfs, living or dead.",
        epilog="examples:\n  mdsfs umount /mnt/ds --wait 30\n  mdsfs umount /mnt/ds --lazy",
    )
    parser.add_argument("mountpoint", **POSITIONAL, metavar="MOUNTPOINT")
    parser.add_argument("--wait", metavar="SECONDS", type=seconds, default=0.0, help="keep trying while it is in use")
    parser.add_argument(
        "--lazy",
        action="store_true",
        help="if it is in use (after --wait), take it out of the tree: who has files open there reads on, and the "
        "mount ends with the last of them",
    )
    configurable(parser, "umount")


def run(args: argparse.Namespace) -> int:
    """Unmount, saying for whom we wait.

    Raises MountBusyError when it is still in use at the end of the wait, unless it is to go lazily.
    """
    deadline = time.monotonic() + args.wait
    daemon = _daemon_of(args.mountpoint)
    said = ""
    try:
        while True:
            begun = time.monotonic()
            try:
                unmount(args.mountpoint)
                break
            except MountBusyError as error:
                if time.monotonic() < deadline:
                    if str(error) != said:
                        print(f"mdsfs: waiting: {(said := str(error))}", file=sys.stderr, flush=True)
                    # Looking for the users of a mount walks all processes: no busy loop on a host with many.
                    time.sleep(max(RETRY_SECONDS, 4 * (time.monotonic() - begun)))
                elif args.lazy:
                    detach(args.mountpoint)
                    return 0
                else:
                    raise
        if daemon is not None:
            select.select([daemon], [], [], END_SECONDS)
    finally:
        if daemon is not None:
            os.close(daemon)
    return 0


def _daemon_of(mountpoint: str) -> int | None:
    """A pidfd of the process behind a mount, so that we can wait until it has let go of everything."""
    if answers(mountpoint) != 0:
        return None
    try:
        status = json.loads((Path(mountpoint) / ".mdsfs" / "status").read_bytes())
        return os.pidfd_open(status["mount"]["pid"])
    except (OSError, ValueError, KeyError):
        return None
