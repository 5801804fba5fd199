"""`mdsfs uninstall-service`: stops and removes what `mdsfs install-service` made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mdsfs.supervision.install import Service, uninstall

if TYPE_CHECKING:
    import argparse

__all__ = ["add_parser", "run"]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "uninstall-service",
        help="the same backwards",
        description="Stop a mount's service and remove its configuration; with the last one the units go too.",
        epilog="example:\n  mdsfs uninstall-service ds --purge",
    )
    parser.add_argument("name", metavar="NAME", help="as given to install-service")
    parser.add_argument("--purge", action="store_true", help="remove its cache in /var/cache/mdsfs-service as well")
    parser.add_argument("--root", metavar="DIR", type=Path, default=Path("/"), help="as for install-service")


def run(args: argparse.Namespace) -> int:
    """Uninstall, and say what was left."""
    for path in uninstall(Service(args.name, root=args.root.absolute()), purge=args.purge):
        print(f"left: {path}")
    return 0
