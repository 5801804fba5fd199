"""What each kind of action does to a stage, and what ends it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
from typing import TYPE_CHECKING, TypeVar

from tests.chaos.processes import Process, named
from tests.servers import Fault

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.chaos.schedule import Action
    from tests.chaos.stage import Stage

__all__ = ["begin"]

T = TypeVar("T")

# Faults hit requests as long as they are on; bodies break somewhere in their first bytes, by the action's number.
BROKEN_WITHIN = 400_000
CORRUPT_WITHIN = 10_000
_FAULTS = {
    "503": Fault("status"),
    "500": Fault("status", status=500, code="InternalError"),
    "reset": Fault("reset", match="shard"),
    "truncate": Fault("truncate", match="shard"),
    "stall": Fault("stall", match="shard"),
    # one answer, and only where a checksum tells at once: it is fetched once more, and nobody hears of it
    "corrupt": Fault("corrupt", match="seekable/shard", times=1),
    "refuse": Fault("refuse"),
}


def _one_of(candidates: Sequence[T], pick: float) -> T | None:
    return candidates[int(pick * len(candidates))] if candidates else None


def begin(stage: Stage, action: Action) -> tuple[str, Callable[[], None] | None]:
    """Do it: what was done to whom ("" if nobody was there), and what ends it, if it lasts."""
    verb, _, what = action.kind.partition(" ")
    if action.kind in _FAULTS:
        return _break(stage, action)
    if action.kind == "kill server":
        return ("server", stage.start_server) if stage.kill_server() else ("", None)
    if action.kind == "fill disk":
        disk = list(stage.disks.values())[int(action.pick * len(stage.disks))]
        return f"{disk.name}: {disk.fill() >> 20} MiB", disk.empty
    if action.kind == "stop reader":
        return _stop_reader(stage, action)
    process = _one_of(named(what), action.pick)
    if process is None:
        return "", None
    if verb == "kill":
        stage.processes.kill(process)
        return str(process.pid), None
    return str(process.pid), _stopped(process)


def _break(stage: Stage, action: Action) -> tuple[str, Callable[[], None] | None]:
    like = _FAULTS[action.kind]
    if like.times and like.kind in {fault.kind for fault in stage.proxy.faults}:
        return "", None  # two of them could hit the second attempt as well
    after = int(action.pick * (CORRUPT_WITHIN if like.kind == "corrupt" else BROKEN_WITHIN))
    fault = stage.proxy.add(dataclasses.replace(like, after=after))

    def end() -> None:
        stage.proxy.remove(fault)
        stage.proxy.reset_counters()

    return f"after {after} bytes" if like.match else "every request", end


def _stop_reader(stage: Stage, action: Action) -> tuple[str, Callable[[], None] | None]:
    reader = _one_of([each for each in stage.readers if not each.stopped_at], action.pick)
    if reader is None:
        return "", None
    pid = reader.pid
    reader.stop()
    return f"{reader.number} ({reader.kind})", lambda: reader.go_on(pid)


def _stopped(process: Process) -> Callable[[], None] | None:
    try:
        which = os.pidfd_open(process.pid)
        signal.pidfd_send_signal(which, signal.SIGSTOP)
    except ProcessLookupError:
        return None

    def go_on() -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(which, signal.SIGCONT)
        os.close(which)

    return go_on
