"""How the values of options are read: sizes, seconds, owners, modes, and mount(8)'s comma lists."""

from __future__ import annotations

import argparse
import grp
import ipaddress
import os
import pwd
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mdsfs.errors import UsageError
from streaming.sizes import parse_size

if TYPE_CHECKING:
    from mdsfs.mount.ordering import OrderOptions

__all__ = [
    "address",
    "credentials_file",
    "default_cache_dir",
    "expand_mount_options",
    "group",
    "mode",
    "order",
    "positive_int",
    "seconds",
    "size",
    "split_mount_options",
    "user",
]

# What mount(8), fstab and systemd write there for themselves, or what a mount of ours is anyway.
_SWALLOWED = frozenset(
    {"defaults", "ro", "auto", "noauto", "user", "users", "nouser", "owner", "group", "nofail", "_netdev"}
    | {"nosuid", "nodev", "noexec", "noatime", "nodiratime", "relatime", "norelatime", "strictatime", "lazytime"}
    | {"nolazytime", "async", "nomand", "silent", "loud", "rw"}  # mount(8) hands over `rw` when nobody said `ro`
)
# CacheDirectory= of the units in systemd/. Another service's, which a job may inherit, is not ours.
SERVICE_CACHES = Path("/var/cache/mdsfs-service")
_REFUSED = frozenset({"suid", "dev", "exec", "sync", "remount", "bind", "rbind", "move"})


def address(text: str) -> str:
    """Where to listen: `HOST:PORT` of numeric addresses, or a port alone, which is one of the loopback address."""
    host, colon, port = text.rpartition(":")
    host = host if colon else "127.0.0.1"
    try:
        number, found = int(port), ipaddress.ip_address("127.0.0.1" if host == "localhost" else host.strip("[]"))
    except ValueError:
        number = -1
    if not 0 <= number < 65536:
        raise argparse.ArgumentTypeError(f"expected HOST:PORT like 127.0.0.1:9567 or [::1]:9567, got {text!r}")
    return f"[{found}]:{number}" if found.version == 6 else f"{found}:{number}"


def size(text: str) -> int:
    """A positive number of bytes."""
    try:
        found = parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if found <= 0:
        raise argparse.ArgumentTypeError(f"expected a size above zero, got {text!r}")
    return found


def seconds(text: str) -> float:
    """A positive number of seconds."""
    try:
        found = float(text.removesuffix("s"))
    except ValueError:
        found = 0.0
    if not 0 < found < 1e9:
        raise argparse.ArgumentTypeError(f"expected seconds above zero, got {text!r}")
    return found


def positive_int(text: str) -> int:
    """A whole number above zero."""
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number above zero, got {text!r}")
    return int(text)


def user(text: str) -> int:
    """A uid, or the name of a user."""
    if text.isdigit():
        return int(text)
    try:
        return pwd.getpwnam(text).pw_uid
    except KeyError:
        raise argparse.ArgumentTypeError(f"no user {text!r}") from None


def group(text: str) -> int:
    """A gid, or the name of a group."""
    if text.isdigit():
        return int(text)
    try:
        return grp.getgrnam(text).gr_gid
    except KeyError:
        raise argparse.ArgumentTypeError(f"no group {text!r}") from None


def credentials_file(text: str) -> str:
    """The absolute path of a file that we may read. Its content is the business of the AWS library."""
    if not os.access(text, os.R_OK):
        raise argparse.ArgumentTypeError(f"cannot read {text!r}")
    return os.path.abspath(text)


def mode(text: str) -> int:
    """Permission bits in octal; bits for writing are dropped, since nothing here can be written."""
    if not re.fullmatch(r"(0o)?[0-7]{3,4}", text):
        raise argparse.ArgumentTypeError(f"expected permission bits like 0444, got {text!r}")
    return int(text.removeprefix("0o"), 8) & 0o555


def order(text: str) -> OrderOptions:
    """The order of a reader, as its arguments."""
    from mdsfs.mount.ordering import parse_order  # numpy is not needed for other commands

    try:
        return parse_order(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def default_cache_dir() -> Path:
    """Where the cache is unless told otherwise: the user's cache folder, for root the system's."""
    given = Path(os.environ.get("CACHE_DIRECTORY", ""))
    if given.parent == SERVICE_CACHES:  # our unit's: systemd created it for the unit's user
        return given
    if os.geteuid() == 0:
        return Path("/var/cache/mdsfs")
    chosen = os.environ.get("XDG_CACHE_HOME")
    return Path(chosen) / "mdsfs" if chosen and os.path.isabs(chosen) else Path.home() / ".cache" / "mdsfs"


def split_mount_options(text: str) -> list[str]:
    """The parts of an `-o` list; a comma inside double quotes or behind a backslash belongs to its value."""
    parts, current, quoted = [], "", False
    characters = iter(text)
    for character in characters:
        if character == "\\":
            current += next(characters, "")
        elif character == '"':
            quoted = not quoted
        elif character == "," and not quoted:
            parts.append(current)
            current = ""
        else:
            current += character
    return [part for part in [*parts, current] if part]


def expand_mount_options(lists: list[str], known: frozenset[str]) -> list[str]:
    """The long options that `-o` lists stand for; `_` and `-` are alike, what is mount(8)'s own is passed over."""
    found = []
    for part in (part for text in lists for part in split_mount_options(text)):
        key, equals, value = part.partition("=")
        name = key.replace("_", "-")
        if key in _SWALLOWED or key.startswith("x-") or key == "comment":
            continue
        if key in _REFUSED:
            raise UsageError(f"-o {key}: mounts of mdsfs are always read-only, nosuid, nodev and noexec")
        if name not in known:
            raise UsageError(f"-o {key}: no such option (see mdsfs mount --help)")
        found.append(f"--{name}={value}" if equals else f"--{name}")
    return found
