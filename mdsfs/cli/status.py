"""`mdsfs status`: how full the cache is, what is fetched, who reads; for people, or as JSON for programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdsfs.errors import MountpointError
from mdsfs.mount.mountpoint import FSTYPE, answers, find_mount
from streaming.engine.client import EngineClient
from streaming.sizes import format_size

from .arguments import default_cache_dir
from .served import add_running

if TYPE_CHECKING:
    import argparse

__all__ = ["add_parser", "render", "run"]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "status",
        help="show the cache, what is fetched and who reads",
        description="Show the state of a mount, or of the engine of a cache directory.",
        epilog="example:\n  mdsfs status /mnt/ds\n  mdsfs status --cache-dir /nvme/cache --json",
    )
    add_running(parser)
    parser.add_argument("--json", action="store_true", help="the document as it is")


def run(args: argparse.Namespace) -> int:
    """Print the status."""
    document = of_mount(args.mountpoint) if args.mountpoint else of_cache(args.cache_dir or default_cache_dir())
    if args.json:
        print(json.dumps(document, indent=1))
    else:
        document.pop("timings", None)  # thousands of counts are for programs
        print(render(document))
    return 0


def of_mount(mountpoint: str) -> dict[str, Any]:
    """The status that a mount shows."""
    entry = find_mount(mountpoint)
    if entry is None or entry.fstype != FSTYPE:
        raise MountpointError(f"{mountpoint} is not a mount of mdsfs")
    if answers(mountpoint) != 0:
        raise MountpointError(
            f"the mount at {mountpoint} does not answer: mdsfs umount {mountpoint}, then mount it again"
        )
    document: dict[str, Any] = json.loads((Path(mountpoint) / ".mdsfs" / "status").read_bytes())
    return document


def of_cache(cache_dir: Path) -> dict[str, Any]:
    """The status of the engine of a cache directory, which must be running."""
    with EngineClient.connect(cache_dir, client="cli") as client:
        document: dict[str, Any] = json.loads(client.status())
    return document


def render(document: dict[str, Any]) -> str:
    """The document as a table: one line per value, sizes in units, lists by line."""
    lines: list[tuple[str, str]] = []
    for section, content in document.items():
        lines.extend(_lines(section, content))
    width = max((len(name) for name, _ in lines), default=0)
    return "\n".join(f"{name:<{width}}  {value}".rstrip() for name, value in lines)


def _lines(name: str, content: Any) -> list[tuple[str, str]]:
    if isinstance(content, dict):
        return [line for key, value in content.items() for line in _lines(f"{name}.{key}", value)]
    if isinstance(content, list):
        if not content:
            return [(name, "none")]
        return [(f"{name}[{number}]", _in_one_line(each)) for number, each in enumerate(content)]
    return [(name.removesuffix("_bytes"), _value(name, content))]


def _in_one_line(content: Any) -> str:
    if isinstance(content, dict):
        return "  ".join(f"{key}={_value(key, value)}" for key, value in content.items())
    return str(content)


def _value(name: str, content: Any) -> str:
    if content is None:
        return "–"
    if isinstance(content, int) and not isinstance(content, bool) and name.rpartition(".")[2].endswith("bytes"):
        return format_size(content)
    return str(content)
