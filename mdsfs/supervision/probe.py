"""Whether a mount answers, found out by a child: a read of `.mdsfs/status`, which no cache can answer.

The mount itself must never touch its own mountpoint, and whoever reads from a mount that hangs may hang with it. So a
child reads, the mount waits for what the child says, and says itself that it is alive only then.
"""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from .notify import Supervisor

__all__ = ["Probe", "keep_alive", "probing"]

log = logging.getLogger(__name__)

# One read per line of input. Being refused is an answer: --uid and --file-mode may shut out the one who mounts.
_CHILD = """
import os, sys
for line in sys.stdin.buffer:
    try:
        fd = os.open(sys.argv[1], os.O_RDONLY)
        while os.read(fd, 1 << 20): pass
        os.close(fd)
    except PermissionError:
        pass
    except OSError as error:
        print(error.errno, flush=True)
        continue
    print(0, flush=True)
"""


class Probe:
    """A running child that reads `path` whenever it is asked."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process

    async def read(self) -> int | None:
        """The errno of a read, 0 if it went well, None if the child has ended. Waits as long as the mount hangs."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            await self._process.stdin.send_all(b"\n")
            said = await self._process.stdout.receive_some(64)
        except trio.BrokenResourceError:
            return None
        return int(said) if said else None


@contextlib.asynccontextmanager
async def probing(path: str) -> AsyncIterator[Probe]:
    """A probe of one file; its child ends with the block."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-S", "-E", "-c", _CHILD, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
    )
    try:
        yield Probe(process)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    await stream.aclose()


async def keep_alive(supervisor: Supervisor, path: str, describe: Callable[[], str]) -> None:
    """Tell the supervisor that we are alive after each read that was answered, for ever.

    Nothing is told while a read hangs or fails: the supervisor's own time limit then ends the mount.
    """
    while True:
        async with probing(path) as probe:
            while (found := await _read(probe, supervisor.interval, path)) is not None:
                if found == 0:
                    supervisor.alive(describe())
                else:
                    log.error("reading %s fails with errno %d", path, found)
                await trio.sleep(supervisor.interval)
        await trio.sleep(supervisor.interval)


async def _read(probe: Probe, patience: float, path: str) -> int | None:
    """One read; a line in the log each time that it has not come for as long as `patience`."""

    async def complain() -> None:
        while True:
            await trio.sleep(patience)
            log.error("the mount has not answered a read of %s for %.0f s", path, patience)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(complain)
        found = await probe.read()
        nursery.cancel_scope.cancel()
    return found
