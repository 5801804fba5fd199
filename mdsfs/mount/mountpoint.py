"""Mountpoints as the kernel lists them: what may be mounted on, what is mounted, what is dead, who still uses it.

Everything is read from /proc. A mountpoint itself is only touched by `answers`, in a process of its own that may hang
instead of us: a filesystem whose daemon is stopped answers nobody.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mdsfs.errors import FuseUnavailableError, MountBusyError, MountpointError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "MountEntry",
    "User",
    "check_fuse",
    "check_mountpoint",
    "detach",
    "find_mount",
    "mount_at",
    "unmount",
    "users_of",
]

FSTYPE = "fuse.mdsfs"
FUSE_CONF = Path("/etc/fuse.conf")
DEVICE = Path("/dev/fuse")
# A living mount answers from memory; but on a busy host the process that asks it takes seconds to start.
ANSWER_SECONDS = 20.0
_MNT_DETACH = 2
_CAP_SYS_ADMIN = 21


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One line of /proc/self/mountinfo."""

    device: str
    mountpoint: str
    fstype: str
    source: str


@dataclass(frozen=True, slots=True)
class User:
    """A process that uses a mount."""

    pid: int
    command: str

    def __str__(self) -> str:
        return f"{self.pid} ({self.command})"


def mounts(text: str | None = None) -> Iterator[MountEntry]:
    """The mounts of this namespace, oldest first."""
    if text is None:
        text = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        yield MountEntry(fields[2], _unescape(fields[4]), kind[0], _unescape(kind[1]))


def find_mount(path: str) -> MountEntry | None:
    """The uppermost mount on exactly this path."""
    return mount_at(os.path.realpath(path))


def mount_at(real: str) -> MountEntry | None:
    """The uppermost mount on a real path, which is not looked at: it may be the caller's own mount."""
    found = None
    for entry in mounts():
        if entry.mountpoint == real:
            found = entry
    return found


def answers(path: str, seconds: float = ANSWER_SECONDS) -> int | None:
    """0 if the directory can be opened, the errno if not, None if that hangs."""
    # Opening always reaches the daemon; `stat` is answered by the kernel long after it has died.
    probe = "import os,sys\ntry: os.close(os.open(sys.argv[1], os.O_RDONLY))\nexcept OSError as e: sys.exit(e.errno)"
    process = subprocess.Popen([sys.executable, "-S", "-c", probe, path], stderr=subprocess.DEVNULL)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        return None


def check_mountpoint(path: str) -> None:
    """Refuse what can't be mounted on; a dead mdsfs mount, left by a daemon that was killed, is cleared away first."""
    entry = find_mount(path)
    if entry is not None and entry.fstype == "autofs":
        return  # looking into it would wait for the very mount that we are about to make
    if entry is not None:
        _check_mounted(path, entry)
    try:
        with os.scandir(path) as entries:
            if any(entries):
                raise MountpointError(f"{path} is not empty: mount on an empty directory")
    except FileNotFoundError:
        raise MountpointError(f"{path} does not exist: create it first (mkdir -p {path})") from None
    except NotADirectoryError:
        raise MountpointError(f"{path} is not a directory") from None
    except OSError as error:
        raise MountpointError(f"cannot use {path} as a mountpoint: {error.strerror}") from error


def _check_mounted(path: str, entry: MountEntry) -> None:
    if not entry.fstype.startswith("fuse"):
        # A disk's own root directory is a mountpoint, and a fine place to mount on if it is empty.
        return
    found = answers(path)
    if found is None:
        raise MountpointError(f"{path} has a mount of {entry.source} that does not answer: unmount it first")
    if found != errno.ENOTCONN:
        raise MountpointError(f"{path} is already mounted ({entry.source}): mdsfs umount {path}")
    if entry.fstype != FSTYPE:
        raise MountpointError(f"{path} has a dead mount of {entry.source} ({entry.fstype}): unmount it first")
    detach(path)


def check_fuse(*, allow_other: bool) -> None:
    """Refuse where the kernel or the permissions can't do what is asked, naming what is missing."""
    if not DEVICE.exists():
        raise FuseUnavailableError(f"{DEVICE} is missing: load the fuse module, or give the container that device")
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        raise FuseUnavailableError(f"no permission to use {DEVICE}: it must be readable and writable for you")
    if may_mount():
        return
    if shutil.which("fusermount3") is None:
        raise FuseUnavailableError("fusermount3 is missing, which users need to mount: install the package fuse3")
    if allow_other and not _user_allow_other():
        raise FuseUnavailableError(f"--allow-other needs a line `user_allow_other` in {FUSE_CONF}")


def may_mount() -> bool:
    """Whether we may mount and unmount ourselves: root, or a service with CAP_SYS_ADMIN. Others need fusermount3."""
    effective = re.search(r"^CapEff:\s*(\w+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return effective is not None and bool(int(effective[1], 16) >> _CAP_SYS_ADMIN & 1)


def _user_allow_other() -> bool:
    try:
        lines = FUSE_CONF.read_text().splitlines()
    except OSError:
        return False
    return any(line.strip() == "user_allow_other" for line in lines)


def detach(path: str) -> None:
    """Take a dead or lazily unmounted mount out of the tree at once."""
    if may_mount():
        _umount2(path, _MNT_DETACH)
        return
    _fusermount("-u", "-z", path)


def unmount(path: str) -> None:
    """Unmount; raises MountBusyError, naming who uses it, while it is in use."""
    entry = find_mount(path)
    if entry is None:
        raise MountpointError(f"{path} is not a mountpoint")
    if entry.fstype != FSTYPE:
        raise MountpointError(f"{path} is a mount of {entry.source} ({entry.fstype}), not of mdsfs")
    if answers(path) == errno.ENOTCONN:
        detach(path)
        return
    try:
        if may_mount():
            _umount2(path, 0)
        else:
            _fusermount("-u", path)
    except MountBusyError:
        users = users_of(entry.mountpoint)
        names = ", ".join(str(user) for user in users) or "a process that you may not see"
        raise MountBusyError(
            f"{path} is in use by {names}: end it, give it time with --wait SECONDS, or use --lazy"
        ) from None


def _umount2(path: str, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(path), flags) == 0:
        return
    code = ctypes.get_errno()
    if code == errno.EBUSY:
        raise MountBusyError(f"{path} is in use")
    raise MountpointError(f"cannot unmount {path}: {os.strerror(code)}")


def _fusermount(*arguments: str) -> None:
    tool = shutil.which("fusermount3")
    if tool is None:
        raise FuseUnavailableError("fusermount3 is missing, which users need to unmount: install the package fuse3")
    done = subprocess.run(
        [tool, *arguments], capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"}
    )
    if done.returncode == 0:
        return
    said = done.stderr.strip().splitlines()
    reason = said[-1] if said else f"fusermount3 ended with {done.returncode}"
    if "busy" in reason:
        raise MountBusyError(reason)
    raise MountpointError(f"cannot unmount {arguments[-1]}: {reason}")


def users_of(mountpoint: str) -> list[User]:
    """The processes with an open file, a mapping, a working directory or a root below the mountpoint."""
    processes = (Path("/proc") / name for name in os.listdir("/proc") if name.isdigit())
    found = [User(int(process.name), _command(process)) for process in processes if _uses(process, mountpoint)]
    return sorted(found, key=lambda user: user.pid)


def _uses(process: Path, mountpoint: str) -> bool:
    below = mountpoint.rstrip("/") + "/"
    links = [process / "cwd", process / "root", process / "exe"]
    with contextlib.suppress(OSError):
        links.extend((process / "fd").iterdir())
    for link in links:
        try:
            target = os.readlink(link)
        except OSError:
            continue
        if target == mountpoint or target.startswith(below):
            return True
    try:
        maps = (process / "maps").read_text(errors="surrogateescape")
    except OSError:
        return False
    return any(_unescape(line[line.index("/") :]).startswith(below) for line in maps.splitlines() if "/" in line)


def _command(process: Path) -> str:
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")
        # The program's name without its folder: a long path would push out the words that tell one user from another.
        words[0] = os.path.basename(words[0])
        text = b" ".join(words).decode(errors="replace").strip() or (process / "comm").read_text().strip()
    except OSError:
        return "ended"
    return text if len(text) <= 60 else text[:59] + "…"


def _unescape(text: str) -> str:
    # The kernel writes blanks, tabs, newlines and backslashes of names as three octal digits.
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
