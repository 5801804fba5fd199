"""Where the engine of a cache directory listens: socket path from the directory's identity, in a folder only its user
may write.

The identity is st_dev and st_ino, so that every spelling of a path (symbolic links, bind mounts) leads to the one
engine.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from streaming.errors import EngineUnavailableError

__all__ = ["SERVICE_DIRECTORY", "runtime_directory", "socket_path"]

# Where engines listen that systemd runs: they have a user of their own, and anybody must be able to find them.
SERVICE_DIRECTORY = Path("/run/mdsfs-service")


def runtime_directory(uid: int | None = None) -> Path:
    """The folder of this user's engine sockets (not created here); a service's is the one that its unit was given."""
    if uid is None and os.environ.get("RUNTIME_DIRECTORY") == str(SERVICE_DIRECTORY):
        return SERVICE_DIRECTORY
    uid = os.geteuid() if uid is None else uid
    if uid == 0:
        return Path("/run/mdsfs")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime:
        return Path(runtime) / "mdsfs"
    return Path(f"/tmp/mdsfs-{uid}")


def prepare_runtime_directory(*, open_to_others: bool = False) -> Path:
    """Create the folder where it is missing and refuse one that somebody else could have planted or may write to."""
    folder = runtime_directory()
    try:
        folder.mkdir(mode=0o700, parents=False, exist_ok=True)
        check_runtime_directory(folder)
        if open_to_others and folder.stat().st_mode & 0o111 != 0o111:
            folder.chmod(0o711)
    except FileNotFoundError as error:
        raise EngineUnavailableError(
            f"{folder.parent} does not exist: set XDG_RUNTIME_DIR to a folder of yours"
        ) from error
    except OSError as error:
        raise EngineUnavailableError(f"cannot use {folder} for the engine's socket: {error.strerror}") from error
    return folder


def check_runtime_directory(folder: Path) -> None:
    """Refuse a folder that is not ours alone: whoever may write there could pose as the engine."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise EngineUnavailableError(
            f"{folder} must be a folder of uid {os.geteuid()} that nobody else may write: remove it"
        )


def socket_path(cache_dir: str | os.PathLike[str]) -> Path:
    """The socket of the engine that owns, or would own, this existing cache directory."""
    found = os.stat(cache_dir)
    name = f"{found.st_dev:x}-{found.st_ino:x}.sock"
    own = runtime_directory() / name
    # Only root can make that folder, so nobody can pose as the service there.
    service = SERVICE_DIRECTORY / name
    return service if service.exists() and not own.exists() else own
