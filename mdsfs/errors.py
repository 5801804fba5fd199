"""The errors that only the filesystem's commands know; everything else is in `streaming.errors`.

They belong to the same tree, so that one `except` at the door of each command maps all of them to a line and an exit
code.
"""

from __future__ import annotations

import errno as _errno
from typing import ClassVar

from streaming.errors import StreamingError

__all__ = ["FuseUnavailableError", "MountBusyError", "MountpointError", "ServiceError", "UsageError"]


class UsageError(StreamingError, ValueError):
    """The command line asks for something impossible."""

    code = "usage"
    errno: ClassVar[int] = _errno.EINVAL
    exit_code = 2


class MountpointError(StreamingError):
    """The mountpoint can't be mounted on, or is not one of ours."""

    code = "mountpoint"
    exit_code = 8


class FuseUnavailableError(StreamingError):
    """The kernel's FUSE, fusermount3 or the permission to use them is missing."""

    code = "fuse-unavailable"
    exit_code = 9


class MountBusyError(StreamingError):
    """Programs still use the mount; the message names them."""

    code = "mount-busy"
    errno: ClassVar[int] = _errno.EBUSY
    exit_code = 10


class ServiceError(StreamingError):
    """A service can't be installed or removed: no systemd, not root, or systemd refuses."""

    code = "service"
    exit_code = 12
