"""`mdsfs engine`: runs the engine of a cache directory in the foreground; mounts and readers start it by themselves."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING

from mdsfs import logs
from mdsfs.config.layers import configurable
from streaming.errors import StreamingError, to_wire

from .arguments import default_cache_dir, positive_int, seconds
from .served import add_cache_options, add_log_options, add_request_options

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from mdsfs.engine.options import ServiceOptions

__all__ = ["add_parser", "run"]

# Of what is free when nothing is said, like a mount.
DEFAULT_LIMIT = 100 << 30
DEFAULT_SHARE = 0.9

EXAMPLES = """\
examples:
  mdsfs engine --cache-dir /nvme/cache --cache-limit 200GiB
  mdsfs engine --cache-dir /nvme/cache --stop
  mdsfs engine --config /etc/mdsfs/ds.toml

Mounts and readers start an engine where none runs. One started here serves them all, with these options.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "engine",
        help="run the engine of a cache directory",
        description="Run the engine of a cache directory, in the foreground.",
        epilog=EXAMPLES,
    )
    add = parser.add_argument
    add_cache_options(parser)
    add_request_options(parser)
    add("--processes", metavar="N", type=positive_int, help="fetcher processes (default 1)")
    add("--allow-other", action="store_true", help="serve the processes of other users")
    add(
        "--idle-exit",
        metavar="SECONDS",
        type=seconds,
        help="end when nobody was connected for so long (default: never)",
    )
    add("--stop", action="store_true", help="end the engine of this directory")
    add_log_options(parser, "stderr")
    add("--ready-fd", metavar="FD", type=int, help="write `ok`, or an error as JSON, there when the start is over")
    configurable(parser, "engine")


def run(args: argparse.Namespace) -> int:
    """Run the engine until it is told to end."""
    cache_dir = (args.cache_dir or default_cache_dir()).absolute()
    if args.stop:
        return _stop(cache_dir)
    from mdsfs.engine.service import serve, tell

    if args.credentials_file:
        os.environ["AWS_SHARED_CREDENTIALS_FILE"] = args.credentials_file
    logs.start(args.log_level, form=args.log_format, file=args.log_file)
    try:
        return serve(_options(args, cache_dir))
    except StreamingError as error:
        tell(args.ready_fd, json.dumps(to_wire(error)))
        raise


def _options(args: argparse.Namespace, cache_dir: Path) -> ServiceOptions:
    from mdsfs.engine.options import ServiceOptions

    chosen = {name: getattr(args, name) for name in ("processes", "threads", "part_size") if getattr(args, name)}
    return ServiceOptions(
        cache_dir,
        args.cache_limit or _default_limit(cache_dir),
        verify=args.verify,
        allow_other=args.allow_other,
        idle_exit=args.idle_exit,
        ready_fd=args.ready_fd,
        metrics=args.metrics,
        memory_limit=args.memory_limit,
        **chosen,
    )


def _stop(cache_dir: Path) -> int:
    from streaming.engine.client import EngineClient

    with EngineClient.connect(cache_dir, client="cli") as client:
        client.stop()
    return 0


def _default_limit(cache_dir: Path) -> int:
    place = next(each for each in (cache_dir, *cache_dir.parents) if each.exists())
    return min(DEFAULT_LIMIT, int(shutil.disk_usage(place).free * DEFAULT_SHARE))
