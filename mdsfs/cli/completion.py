"""`mdsfs completion`: what a shell needs to complete commands, options and paths."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from streaming.errors import MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["add_parser", "run"]

SHELLS = ("bash", "zsh", "fish")
# What stands behind an option, or for a positional, by how its help names it.
DIRECTORIES = frozenset({"DIR", "MOUNTPOINT"})
FILES = frozenset({"FILE", "FILE.png"})


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "completion",
        help="print shell completion",
        description="Print the completion of mdsfs for a shell.",
        epilog="examples:\n  mdsfs completion bash > /etc/bash_completion.d/mdsfs\n"
        "  mdsfs completion zsh > /usr/local/share/zsh/site-functions/_mdsfs\n"
        "  mdsfs completion fish > ~/.config/fish/completions/mdsfs.fish",
    )
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))


def run(args: argparse.Namespace) -> int:
    """Print it."""
    try:
        import shtab
    except ImportError as error:
        raise MissingDependencyError(f"completion needs shtab ({error}): pip install 'mdsfs[completion]'") from error
    from .main import build_parser

    parser = build_parser()
    for action in _actions(parser):
        if action.metavar in DIRECTORIES:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]  # that is how shtab is told
        elif action.metavar in FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(parser, shell=args.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from _actions(each)
        else:
            yield action
