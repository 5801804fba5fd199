"""The options of an engine, which a mount that starts one takes for it, and how a running one is named."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdsfs import logs

from .arguments import address, credentials_file, positive_int, size

if TYPE_CHECKING:
    import argparse

__all__ = ["add_cache_options", "add_log_options", "add_request_options", "add_running"]


def add_cache_options(group: argparse._ActionsContainer) -> None:
    """What is kept where, in what bounds, and who may look."""
    add = group.add_argument
    add("--cache-dir", metavar="DIR", type=Path, help="default: ~/.cache/mdsfs, for root /var/cache/mdsfs")
    add("--cache-limit", metavar="SIZE", type=size, help="default: 100GiB or 90%% of the free space, the smaller")
    add(
        "--verify",
        choices=("transport", "shard"),
        default="transport",
        help="shard: serve only bytes whose hash was checked",
    )
    add("--memory-limit", metavar="SIZE", type=size, help="of the engine's heaps and buffers (default: none)")
    add("--metrics", metavar="HOST:PORT", type=address, help="the engine serves metrics and a live page there")


def add_request_options(group: argparse._ActionsContainer) -> None:
    """How much is asked for at a time, and as whom."""
    add = group.add_argument
    add("--credentials-file", metavar="FILE", type=credentials_file, help="instead of ~/.aws/credentials")
    add("--threads", metavar="N", type=positive_int, help="parallel requests to the store, per fetcher process")
    add("--part-size", metavar="SIZE", type=size, help="bytes of one request for large ranges")


def add_log_options(group: argparse._ActionsContainer, default_file: str) -> None:
    """How much is logged, how and where."""
    add = group.add_argument
    add("--log-level", choices=logs.LEVELS, default="info")
    add("--log-format", choices=logs.FORMATS, help="default: journald where stderr is the journal, else text")
    add("--log-file", metavar="FILE", type=Path, help=f"default: {default_file}")


def add_running(parser: argparse.ArgumentParser) -> None:
    """A mount, or the engine of a cache directory."""
    which: Any = parser.add_mutually_exclusive_group()
    which.add_argument("mountpoint", metavar="MOUNTPOINT", nargs="?", help="default: the engine of the cache directory")
    which.add_argument("--cache-dir", metavar="DIR", type=Path, help="default: as for mdsfs mount")
