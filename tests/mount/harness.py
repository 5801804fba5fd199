"""A real mount over a fake engine, in a process of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mdsfs.mount.mountpoint import detach, mount_at

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]


class Mounted:
    """A running mount: its process, where it is, and what it has logged."""

    def __init__(self, process: subprocess.Popen[bytes], mountpoint: Path, log: Path) -> None:
        self.process = process
        self.path = mountpoint
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text()


def why_not_mountable() -> str | None:
    """Why no mount is possible here, None if it is."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse is missing or not accessible"
    return None


@contextlib.contextmanager
def mounted(cache_dir: Path, folder: Path, *, read_timeout: float = 60.0) -> Iterator[Mounted]:
    """Mount in a new directory below `folder`; afterwards nothing is left, whatever happened."""
    mountpoint = folder / "mnt"
    mountpoint.mkdir(exist_ok=True)
    log = folder / "mount.log"
    command = [sys.executable, "-m", "tests.mount.daemon", str(cache_dir), str(mountpoint), str(read_timeout)]
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr)
    assert process.stdout is not None
    try:
        assert process.stdout.readline().startswith(b"mounted"), log.read_text()
        yield Mounted(process, mountpoint, log)
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()
            process.stdout.close()
            if mount_at(str(mountpoint)):
                detach(str(mountpoint))
