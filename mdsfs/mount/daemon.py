"""Going into the background: fork before any event loop exists, and tell the waiting parent how it went.

The parent returns only when the mount answers, or with the child's own error: whoever ran `mdsfs mount` knows at its
exit.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from streaming.errors import StreamingError, from_wire, to_wire

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["Outcome", "in_background"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the child says once: it is ready (with warnings), or why it is not."""

    warnings: tuple[str, ...] = ()


def in_background(serve: Callable[[Callable[[Outcome], None]], int], log_file: Path | None) -> Outcome:
    """Run `serve(ready)` in a daemon; return when it calls `ready`, raise what it raised before that.

    Only the parent returns. The child ends with the exit code of `serve`.
    """
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os._exit(_be_daemon(serve, writing, log_file))
    os.close(writing)
    return _wait_for(child, reading)


def _be_daemon(serve: Callable[[Callable[[Outcome], None]], int], writing: int, log_file: Path | None) -> int:
    def tell(message: dict[str, object]) -> None:
        nonlocal writing
        if writing >= 0:
            os.write(writing, json.dumps(message).encode() + b"\n")
            os.close(writing)
            writing = -1

    def ready(outcome: Outcome) -> None:
        # Not before: whatever mounts on an automount point must belong to the process group that systemd started,
        # since everybody else waits there for the mount.
        os.setsid()
        tell({"warnings": list(outcome.warnings)})

    os.chdir("/")
    os.umask(0o077)
    _redirect(log_file)
    try:
        return serve(ready)
    except StreamingError as error:
        tell({"error": to_wire(error)})
        return type(error).exit_code
    except Exception as error:  # the last door of a process: nobody above could report it
        tell({"error": to_wire(error)})
        sys.excepthook(type(error), error, error.__traceback__)
        return 1


def _redirect(log_file: Path | None) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    out = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) if log_file else null
    os.dup2(null, 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    for fd in {null, out}:
        if fd > 2:
            os.close(fd)


def _wait_for(child: int, reading: int) -> Outcome:
    try:
        with os.fdopen(reading, "rb") as pipe:
            said = pipe.read()
    except KeyboardInterrupt:
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)
        raise
    if not said:
        _, status = os.waitpid(child, 0)
        how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"status {os.WEXITSTATUS(status)}"
        raise StreamingError(f"the mount process ended before it was ready ({how}): run with -f to see why")
    message = json.loads(said)
    if "error" in message:
        os.waitpid(child, 0)
        raise from_wire(message["error"])
    return Outcome(tuple(message["warnings"]))
