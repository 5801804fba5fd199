"""The host: kernel, FUSE and who may use it, limits, the cgroup's memory, the folder of the sockets."""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from streaming.engine.address import check_runtime_directory, runtime_directory
from streaming.errors import EngineUnavailableError
from streaming.sizes import format_size

from .findings import Finding, fail, ok, warn

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["allowance", "cgroup_limits", "check"]

# preadv2(RWF_NOWAIT) on buffered files; older kernels make every read a trip to a thread.
LEAST_KERNEL = (5, 4)
LEAST_DESCRIPTORS = 4096
# Below this the page cache of the cache files is squeezed out while they are read.
LEAST_CGROUP = 4 << 30
FUSE_DEVICE = Path("/dev/fuse")
FUSE_CONF = Path("/etc/fuse.conf")


def check() -> Iterator[Finding]:
    """Everything about the host."""
    yield _kernel(platform.release())
    yield _fuse()
    yield _fusermount()
    yield _user_allow_other()
    yield _descriptors()
    yield _memory(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))
    yield _sockets()
    yield _readahead()


def _kernel(release: str) -> Finding:
    match = re.match(r"(\d+)\.(\d+)", release)
    version = (int(match.group(1)), int(match.group(2))) if match else (0, 0)
    if version < LEAST_KERNEL:
        wanted = ".".join(map(str, LEAST_KERNEL))
        return fail("kernel", release, f"use Linux {wanted} or newer")
    return ok("kernel", release)


def _fuse() -> Finding:
    if not FUSE_DEVICE.exists():
        return fail(
            "fuse", f"{FUSE_DEVICE} is missing", "modprobe fuse; in a container add the device (--device /dev/fuse)"
        )
    try:
        os.close(os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return fail(
            "fuse",
            f"{FUSE_DEVICE}: {error.strerror}",
            "let this user read and write it (mode 0666 is usual); a container must be allowed the device",
        )
    return ok("fuse", f"{FUSE_DEVICE} can be opened")


def _fusermount() -> Finding:
    path = shutil.which("fusermount3")
    if path is None:
        level = warn if os.geteuid() == 0 else fail
        return level("fusermount3", "not found", "install the package fuse3")
    if os.geteuid() and not os.stat(path).st_mode & 0o4000:
        return fail("fusermount3", f"{path} is not setuid root", f"chmod u+s {path}, or mount as root")
    return ok("fusermount3", path)


def _user_allow_other() -> Finding:
    try:
        lines = FUSE_CONF.read_text().splitlines()
    except OSError:
        lines = []
    if any(line.strip() == "user_allow_other" for line in lines):
        return ok("allow-other", f"users may share their mounts ({FUSE_CONF})")
    if os.geteuid() == 0:
        return ok("allow-other", "root may share mounts")
    return warn(
        "allow-other", "this user's mounts are for this user only", f"to share them: user_allow_other in {FUSE_CONF}"
    )


def _descriptors() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < LEAST_DESCRIPTORS:
        return warn(
            "descriptors", f"at most {hard}", f"raise it to {LEAST_DESCRIPTORS} or more: ulimit -Hn, or LimitNOFILE="
        )
    return ok("descriptors", f"{soft}, may be raised to {'any number' if hard == resource.RLIM_INFINITY else hard}")


def cgroup_limits(root: Path, own: Path) -> list[tuple[str, int]]:
    """Every memory limit above this process: (file, bytes); cgroup v2 or v1."""
    found = []
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        names: tuple[str, ...]
        if controllers == "":
            base, names = root, ("memory.max", "memory.high")
        elif "memory" in controllers.split(","):
            base, names = root / "memory", ("memory.limit_in_bytes",)
        else:
            continue
        folder = base / path.lstrip("/")
        while folder == base or base in folder.parents:
            for name in names:
                value = _number(folder / name)
                if value is not None and value < 1 << 60:
                    found.append((str(folder / name), value))
            folder = folder.parent
    return found


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None  # `max`, or not there


def allowance(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int | None:
    """The tightest memory limit above this process; None where there is none."""
    return min((value for _, value in cgroup_limits(root, own)), default=None)


def _memory(root: Path, own: Path) -> Finding:
    limits = cgroup_limits(root, own)
    if not limits:
        return ok("memory", "no limit on this control group")
    name, value = min(limits, key=lambda each: each[1])
    said = f"{name} is {format_size(value)}"
    if value < LEAST_CGROUP:
        return warn(
            "memory",
            said,
            "the page cache of cache files counts against it: use --memory-limit instead of MemoryMax=",
        )
    return ok("memory", said)


def _sockets() -> Finding:
    folder = runtime_directory()
    if not folder.exists():
        if not folder.parent.is_dir():
            return fail("sockets", f"{folder.parent} does not exist", "set XDG_RUNTIME_DIR to a folder of yours")
        if not os.access(folder.parent, os.W_OK):
            return fail("sockets", f"{folder} cannot be created", "set XDG_RUNTIME_DIR to a folder of yours")
        return ok("sockets", f"{folder} (will be created)")
    try:
        check_runtime_directory(folder)
    except EngineUnavailableError as error:
        return fail("sockets", str(error), "remove it; the next engine makes it anew")
    return ok("sockets", str(folder))


def _readahead() -> Finding:
    if os.geteuid() == 0 or os.access("/sys/class/bdi", os.W_OK):
        return ok("readahead", "mounts get 1 MiB")
    return warn(
        "readahead",
        "this user's mounts keep the kernel's 128 KiB",
        "mount as root or as a service, or: mdsfs tune MOUNTPOINT as root",
    )
