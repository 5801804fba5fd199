"""The command `mdsfs`: finds the sub-command, and turns every error into one line and an exit code."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, NoReturn

from mdsfs.config.layers import check_positionals, is_layered, keys_of, parse_layered
from mdsfs.errors import UsageError
from streaming.errors import StreamingError

from . import (
    cache,
    completion,
    config,
    doctor,
    engine,
    install_service,
    ls,
    mount,
    plan,
    repack,
    status,
    top,
    tune,
    umount,
    uninstall_service,
    verify,
    warm,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["EXIT_CODES", "Parser", "build_parser", "layered_parsers", "main"]

COMMANDS = {
    "mount": mount,
    "umount": umount,
    "status": status,
    "top": top,
    "doctor": doctor,
    "engine": engine,
    "config": config,
    "ls": ls,
    "warm": warm,
    "cache": cache,
    "verify": verify,
    "repack": repack,
    "plan": plan,
    "install-service": install_service,
    "uninstall-service": uninstall_service,
    "tune": tune,
    "completion": completion,
}

EXIT_CODES = """\
exit codes:
  0  done                                      7  the cache: directory, limit, disk full, other options
  1  an error without a number of its own      8  the mountpoint: missing, not empty, already mounted
  2  usage, or a library that is missing       9  FUSE: no device, no fusermount3, not permitted
  3  nothing under this URL                   10  the mount is in use
  4  credentials refused                      11  the engine: not running, not starting
  5  the store can't be reached, or fails     12  systemd: not running, not permitted, or it refuses
  6  the dataset is wrong or has changed      130  interrupted
"""


class Parser(argparse.ArgumentParser):
    """argparse with our form of errors and untouched line breaks."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        """One line instead of the usage in full."""
        raise UsageError(f"{message} (see {self.prog} --help)")

    def parse_known_args(  # type: ignore[override]  # the overloads of argparse, in one
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As usual, but for commands that take values from a file and the environment as well."""
        if namespace is not None or not is_layered(self):
            return super().parse_known_args(args, namespace)
        found, rest = parse_layered(self, sys.argv[1:] if args is None else args, _layered_keys)
        check_positionals(self, found)
        return found, rest


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *unused: object) -> None:
        from mdsfs.mount.status import distribution_version

        print(f"mdsfs {distribution_version()}")
        parser.exit()


def build_parser() -> Parser:
    """The parser of the command and all its sub-commands."""
    parser = Parser(
        prog="mdsfs",
        description="Mount remote MDS datasets as plain local files.",
        epilog=f"example:\n  mdsfs mount s3://bucket/dataset /mnt/ds\n\n{EXIT_CODES}",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS.values():
        command.add_parser(subparsers)
    return parser


def layered_parsers() -> dict[str, argparse.ArgumentParser]:
    """The parsers of the commands that take values from a file and the environment as well, by command."""
    choices = next(each.choices for each in build_parser()._actions if isinstance(each, argparse._SubParsersAction))
    return {name: parser for name, parser in choices.items() if is_layered(parser)}


def _layered_keys() -> dict[str, frozenset[str]]:
    return {name: frozenset(keys_of(parser)) for name, parser in layered_parsers().items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    try:
        args = build_parser().parse_args(argv)
        code: int = COMMANDS[args.command].run(args)
        return code
    except StreamingError as error:
        return _failed(str(error), type(error).exit_code)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141  # whoever read our output has gone, as `| head` does
    except OSError as error:
        return _failed(str(error), 1)


def _failed(message: str, code: int) -> int:
    line = " ".join(message.split())
    print(f"mdsfs: {line}", file=sys.stderr)
    return code
