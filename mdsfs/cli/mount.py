"""`mdsfs mount`: checks all that can be checked before forking, then mounts in the background or the foreground."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from mdsfs import logs
from mdsfs.config.layers import POSITIONAL, configurable
from mdsfs.errors import MountpointError
from streaming.errors import CacheDirectoryError, MissingDependencyError

from .arguments import (
    default_cache_dir,
    expand_mount_options,
    group,
    mode,
    order,
    seconds,
    user,
)
from .served import add_cache_options, add_log_options, add_request_options
from .store import add_store_options, remote_options

if TYPE_CHECKING:
    import argparse

    from mdsfs.mount.daemon import Outcome
    from mdsfs.mount.mounting import MountConfig

__all__ = ["add_parser", "run"]

EXAMPLES = """\
examples:
  mdsfs mount s3://bucket/dataset /mnt/ds
  mdsfs mount s3://bucket/dataset /mnt/ds --cache-dir /nvme/cache --cache-limit 200GiB --endpoint-url http://127.0.0.1:9000
  mdsfs mount /data/shards /mnt/ds -f -o allow_other,ro
  mdsfs mount --config /etc/mdsfs/ds.toml

The exit code is 0 once the mount has answered; the other codes are in `mdsfs --help`.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "mount",
        help="mount a dataset, or a folder of several",
        description="Mount a dataset read-only.",
        epilog=EXAMPLES,
    )
    add = parser.add_argument
    add(
        "source",
        **POSITIONAL,
        metavar="SOURCE",
        help="s3://bucket/prefix, file:///path or a path: one dataset or a folder of several",
    )
    add("mountpoint", **POSITIONAL, metavar="MOUNTPOINT", help="an empty directory")
    add("-f", "--foreground", action="store_true", help="stay in the foreground, log to stderr")
    add(
        "-o", dest="mount_options", metavar="OPT[=VALUE],…", action="append", default=[], help="options as for mount(8)"
    )
    cache = parser.add_argument_group("cache")
    add_cache_options(cache)
    cache.add_argument("--no-spawn", action="store_true", help="use the engine that runs (a service); never start one")
    cache.add_argument(
        "--order",
        metavar="'KEY=VALUE,…'",
        type=order,
        help="how readers read that can't say it: shuffle=true,algo=py1e,seed=9176,batch_size=32,workers=8,…",
    )
    add_request_options(add_store_options(parser))
    shown = parser.add_argument_group("what is shown").add_argument
    shown(
        "--allow-other",
        action="store_true",
        help="let other users read (users: needs user_allow_other in /etc/fuse.conf)",
    )
    shown("--uid", metavar="USER", type=user)
    shown("--gid", metavar="GROUP", type=group)
    shown("--file-mode", metavar="OCTAL", type=mode, default=0o444)
    shown("--dir-mode", metavar="OCTAL", type=mode, default=0o555)
    shown("--read-timeout", metavar="SECONDS", type=seconds, default=60.0, help="a read ends with EIO after this (60)")
    add_log_options(parser.add_argument_group("log"), "stderr in the foreground, else syslog where there is one")
    configurable(parser, "mount", expand_mount_options)


def run(args: argparse.Namespace) -> int:
    """Mount; returns when the mount answers, or with -f when it has ended."""
    if args.credentials_file:
        os.environ["AWS_SHARED_CREDENTIALS_FILE"] = args.credentials_file
    try:
        from mdsfs.mount.daemon import in_background
        from mdsfs.mount.mounting import serve
    except ImportError as error:
        raise MissingDependencyError(f"mounting needs pyfuse3 ({error}): pip install 'mdsfs[mount]'") from error
    if args.log_file:
        args.log_file = args.log_file.absolute()  # the daemon works in `/`
    config = _config(args)
    _check(args, config)
    line = f"{args.source} is mounted at {args.mountpoint}"
    if args.foreground:
        _start_log(args)
        return serve(config, lambda outcome: _say(line, outcome))

    def serve_in_child(ready: object) -> int:
        _start_log(args)
        return serve(config, ready)  # type: ignore[arg-type]

    _say(line, in_background(serve_in_child, args.log_file))
    return 0


def _config(args: argparse.Namespace) -> MountConfig:
    from mdsfs.mount.mounting import MountConfig
    from mdsfs.mount.operations import Ownership
    from streaming.engine.spawn import EngineOptions

    source = args.source if "://" in args.source else os.path.abspath(args.source)
    options = remote_options(args)
    engine = EngineOptions(
        cache_dir=(args.cache_dir or default_cache_dir()).absolute(),
        cache_limit=args.cache_limit,
        threads=args.threads,
        part_size=args.part_size,
        allow_other=args.allow_other,
        log_level=args.log_level,
        log_format=args.log_format,
        metrics=args.metrics,
        memory_limit=args.memory_limit,
    )
    return MountConfig(
        source=source,
        mountpoint=os.path.realpath(args.mountpoint),
        engine=engine,
        identity=options.identity(source),
        ownership=Ownership(
            os.geteuid() if args.uid is None else args.uid,
            os.getegid() if args.gid is None else args.gid,
            args.file_mode,
            args.dir_mode,
        ),
        validate="shard" if args.verify == "shard" else None,
        read_timeout=args.read_timeout,
        order=args.order,
        allow_other=args.allow_other,
        spawn=not args.no_spawn,
    )


def _check(args: argparse.Namespace, config: MountConfig) -> None:
    """Refuse what can't work, before anything exists that would have to be cleaned up."""
    from mdsfs.mount.mountpoint import check_fuse, check_mountpoint

    cache = os.path.realpath(config.engine.cache_dir)
    if _inside(cache, config.mountpoint):
        raise CacheDirectoryError(f"the cache {cache} is inside the mountpoint: choose another --cache-dir")
    if _inside(config.mountpoint, cache):
        raise CacheDirectoryError(f"the mountpoint is inside the cache {cache}: choose another --cache-dir")
    source = args.source.removeprefix("file://")
    if "://" not in source and _inside(os.path.realpath(source), config.mountpoint):
        raise MountpointError(f"{args.source} is inside the mountpoint, which would hide it")
    if args.log_file and _inside(os.path.realpath(args.log_file), config.mountpoint):
        raise MountpointError(f"the log file {args.log_file} is inside the mountpoint")
    check_fuse(allow_other=config.allow_other)
    check_mountpoint(args.mountpoint)
    try:
        os.makedirs(cache, mode=0o700, exist_ok=True)
    except OSError as error:
        raise CacheDirectoryError(f"cannot create the cache {cache}: {error.strerror}; choose --cache-dir") from error


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _start_log(args: argparse.Namespace) -> None:
    logs.start(args.log_level, form=args.log_format, file=args.log_file, syslog=not args.foreground)


def _say(line: str, outcome: Outcome) -> None:
    for warning in outcome.warnings:
        print(f"mdsfs: warning: {warning}", file=sys.stderr)
    print(line, flush=True)
