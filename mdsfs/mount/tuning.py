"""Kernel settings of one mount that pyfuse3 can't negotiate, made through /sys where that is permitted.

By default the kernel reads ahead 128 KiB and lets twelve background reads run: a dozen readers stuck on one object
would then keep every other cold file waiting. The connection's files belong to whoever mounted; read-ahead belongs to
root alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Tuning", "tune"]

READAHEAD_KB = 1024
MAX_BACKGROUND = 256
# Three quarters, as the kernel's own defaults are: writers are slowed before the queue is full.
CONGESTION_THRESHOLD = 192
CONNECTIONS = Path("/sys/fs/fuse/connections")


@dataclass(frozen=True, slots=True)
class Tuning:
    """What the kernel uses now; None where it would not even say."""

    readahead_kb: int | None
    max_background: int | None
    congestion_threshold: int | None


def tune(device: str) -> Tuning:
    """Set what may be set for the mount on `device` (`major:minor`, as in mountinfo) and report what holds then."""
    minor = device.partition(":")[2]
    connection = CONNECTIONS / minor
    if not connection.is_dir():
        _mount_fusectl()
    return Tuning(
        _set(Path("/sys/class/bdi") / device / "read_ahead_kb", READAHEAD_KB),
        _set(connection / "max_background", MAX_BACKGROUND),
        _set(connection / "congestion_threshold", CONGESTION_THRESHOLD),
    )


def _set(path: Path, value: int) -> int | None:
    with contextlib.suppress(OSError):  # not permitted: the answer says what holds instead
        path.write_text(f"{value}\n")
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _mount_fusectl() -> None:
    # systemd mounts it at boot; minimal systems don't. Without it root could not lift the limits of its own mount.
    if os.geteuid() == 0 and CONNECTIONS.is_dir():
        ctypes.CDLL(None).mount(b"fusectl", os.fsencode(CONNECTIONS), b"fusectl", 0, None)
