"""The cache directory: what disk is under it, whether it can be written, how much room there is, who owns it."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdsfs.engine.store import disk
from streaming.engine.client import EngineClient
from streaming.errors import EngineError
from streaming.sizes import format_size

from .findings import Finding, fail, ok, warn
from .host import allowance

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["check", "place_for"]

# What a few readers want at once; with less, every read is a fetch.
LITTLE = 10 << 30
BLOCK = 4096


def check(cache_dir: Path) -> Iterator[Finding]:
    """Everything about the cache directory, which need not exist yet."""
    place = place_for(cache_dir)
    writable = _writable(cache_dir, place)
    yield writable
    if writable.level == "fail":
        return
    yield _holes(place)
    yield _leases(place)
    yield from _room(cache_dir, place)


def place_for(cache_dir: Path) -> Path:
    """The directory itself, or the nearest above it that exists."""
    return next(each for each in (cache_dir, *cache_dir.parents) if each.exists())


def _writable(cache_dir: Path, place: Path) -> Finding:
    if not place.is_dir():
        return fail("cache", f"{place} is not a directory", "choose another --cache-dir")
    if not os.access(place, os.W_OK):
        read_only = os.statvfs(place).f_flag & os.ST_RDONLY
        fix = "remount its filesystem read-write, or choose --cache-dir" if read_only else "choose --cache-dir"
        return fail("cache", f"{place} {'is read-only' if read_only else 'may not be written by this user'}", fix)
    exists = "" if place == cache_dir else " (will be created)"
    return ok("cache", f"{cache_dir}{exists}")


def _holes(place: Path) -> Finding:
    if disk.is_fuse(place):
        return fail("cache disk", "is a FUSE filesystem itself", "choose a --cache-dir on a local disk")
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(2 * BLOCK))
            file.flush()
            disk.punch_hole(file.fileno(), 0, BLOCK)
    except OSError as error:
        return fail(
            "cache disk",
            f"no holes can be punched there: {error.strerror}",
            "use ext4, xfs or btrfs for the cache",
        )
    return ok("cache disk", "files can have holes")


def _leases(place: Path) -> Finding:
    if disk.leases_are_honest(place):
        return ok("cache filesystem", "knows who has a file open")
    return warn(
        "cache filesystem",
        "is an overlay or a network filesystem, which can't tell who has a file open",
        "put the cache on a local disk (in containers: a volume or a bind mount)",
    )


def _room(cache_dir: Path, place: Path) -> Iterator[Finding]:
    found = os.statvfs(place)
    free = found.f_bavail * found.f_frsize
    if found.f_files and found.f_favail < 10_000:
        yield warn(
            "inodes", f"{found.f_favail} free", "the cache needs one per shard: make room, or choose another disk"
        )
    status = _status(cache_dir)
    if status is None:
        if free < LITTLE:
            yield warn("room", f"{format_size(free)} free", "free space, or choose a larger disk with --cache-dir")
        else:
            yield ok("room", f"{format_size(free)} free")
        yield ok("engine", "none runs for this directory; the first mount or reader starts one")
        return
    cache = status["cache"]
    growth = cache["limit_bytes"] - cache["charged_bytes"]
    said = f"the cache may still grow by {format_size(max(0, growth))}, {format_size(free)} are free"
    if growth > free:
        yield warn("room", said, "free space, or restart the engine with a lower --cache-limit")
    else:
        yield ok("room", said)
    yield _engine(status)
    for each in status.get("problems", ()):
        yield fail("engine", each["message"], f"this began {each['times']} failures ago; see the engine's log")


def _engine(status: dict[str, Any]) -> Finding:
    pid = status["engine"]["pid"]
    said = f"pid {pid} runs, version {status['engine']['version']}"
    limit = allowance(own=Path(f"/proc/{pid}/cgroup"))
    if limit is not None:
        return warn(
            "engine",
            f"{said}, with {format_size(limit)} for its control group",
            "the page cache of cache files counts against it: use --memory-limit instead of MemoryMax=",
        )
    return ok("engine", said)


def _status(cache_dir: Path) -> dict[str, Any] | None:
    if not cache_dir.is_dir():
        return None
    try:
        with EngineClient.connect(cache_dir, client="cli") as client:
            return dict(json.loads(client.status(brief=True)))
    except (EngineError, OSError):
        return None
