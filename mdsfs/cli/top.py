"""`mdsfs top`: the cache, its bandwidth and its readers in the terminal, again and again."""

from __future__ import annotations

import contextlib
import json
import select
import shutil
import sys
import termios
import time
import tty
from typing import TYPE_CHECKING, Any

from mdsfs.metrics.sample import rates, sample
from mdsfs.metrics.screen import lines
from streaming.engine.client import EngineClient
from streaming.errors import EngineUnavailableError

from .arguments import default_cache_dir, positive_int, seconds
from .served import add_running
from .status import of_mount

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from mdsfs.metrics.sample import Sample

__all__ = ["add_parser", "run"]

_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
# Of what is no terminal.
WIDE = (200, 60)
_HOME, _END_OF_LINE, _END_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "top",
        help="watch the cache fill, its hit rate, bandwidth and readers",
        description="Show what the engine does, again and again. q ends it.",
        epilog="examples:\n  mdsfs top /mnt/ds\n  mdsfs top --cache-dir /nvme/cache --once",
    )
    add_running(parser)
    add = parser.add_argument
    add("-d", "--delay", metavar="SECONDS", type=seconds, default=1.0, help="between two looks (1)")
    add("-n", "--iterations", metavar="N", type=positive_int, help="end after so many")
    add("-1", "--once", action="store_const", const=1, dest="iterations", help="look once: rates since the start")
    add("--json", action="store_true", help="a line per look: figures, rates per second, problems")


def run(args: argparse.Namespace) -> int:
    """Look until told to end."""
    with _documents(args) as look:
        if args.json or not sys.stdout.isatty():
            _print(args, look)
        else:
            _watch(args, look)
    return 0


@contextlib.contextmanager
def _documents(args: argparse.Namespace) -> Iterator[Callable[[], dict[str, Any]]]:
    """A function that returns a status document of now."""
    if args.mountpoint:
        yield lambda: _of_mount(args.mountpoint)
        return
    with EngineClient.connect(args.cache_dir or default_cache_dir(), client="cli") as client:
        yield lambda: dict(json.loads(client.status(brief=True)))


def _of_mount(mountpoint: str) -> dict[str, Any]:
    document = of_mount(mountpoint)
    if "engine" not in document:
        raise EngineUnavailableError(f"{mountpoint} has no engine: {document['mount']['engine_error']}")
    return document


def _print(args: argparse.Namespace, look: Callable[[], dict[str, Any]]) -> None:
    before: Sample | None = None
    for number in _counted(args.iterations):
        if number:
            time.sleep(args.delay)
        document = look()
        now = sample(document)
        found = rates(before, now)
        if args.json:
            print(json.dumps({"figures": now, "rates": found, "problems": document["problems"]}), flush=True)
        else:
            print("\n".join(lines(document, found, shutil.get_terminal_size(WIDE).columns)), flush=True)
        before = now


def _watch(args: argparse.Namespace, look: Callable[[], dict[str, Any]]) -> None:
    before: Sample | None = None
    with _terminal():
        for number in _counted(args.iterations):
            if number and _key_within(args.delay) == "q":
                return
            document = look()
            now = sample(document)
            size = shutil.get_terminal_size()
            shown = lines(document, rates(before, now), size.columns)[: size.lines - 1]
            sys.stdout.write(_HOME + "".join(f"{line}{_END_OF_LINE}\r\n" for line in shown) + _END_OF_SCREEN)
            sys.stdout.flush()
            before = now


@contextlib.contextmanager
def _terminal() -> Iterator[None]:
    """The other screen, and keys as they are pressed; everything as before afterwards."""
    saved = termios.tcgetattr(sys.stdin) if sys.stdin.isatty() else None
    if saved is not None:
        tty.setcbreak(sys.stdin)
    sys.stdout.write(_ENTER)
    try:
        yield
    finally:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()
        if saved is not None:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, saved)


def _key_within(delay: float) -> str:
    if not sys.stdin.isatty():
        time.sleep(delay)
        return ""
    return sys.stdin.read(1) if select.select([sys.stdin], [], [], delay)[0] else ""


def _counted(most: int | None) -> Iterator[int]:
    number = 0
    while most is None or number < most:
        yield number
        number += 1
