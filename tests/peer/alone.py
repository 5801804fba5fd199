"""One at a time on this machine of what uses the names that mosaicml-streaming gives its shared memory."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Among all runs of these tests. Of two that begin at once and take the same number for their names one fails.

    The folder of shared memory is itself the lock: no file is made, and a run that is killed lets go of it.
    """
    fd = os.open("/dev/shm", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
