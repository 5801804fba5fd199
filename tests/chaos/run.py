"""The chaos run: `python -m tests.chaos.run [--minutes M] [--seed N] [--json FILE] [--folder DIR]`.

Eight readers compare every byte that they read, while processes are killed and stopped, the network and the store
fail, and the caches' disks are filled. It ends with everything whole again: every reader must read, and nothing may be
left when all have ended. What failed is told with the seed and the log of the actions, so that it can be repeated.
"""

from __future__ import annotations

import argparse
import dataclasses
import heapq
import itertools
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streaming.engine.client import EngineClient
from streaming.errors import EngineError
from tests.chaos.actions import begin
from tests.chaos.processes import enter_namespace, named, running
from tests.chaos.report import Report
from tests.chaos.schedule import Action, schedule
from tests.chaos.stage import LIMITS, READ_TIMEOUT, Reader, Stage
from tests.servers import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.chaos.processes import Process

__all__ = ["UNAVAILABLE", "Failure", "main"]

UNAVAILABLE = 3
TICK = 0.02
LOOK = 0.2
# An engine says in its log that it ends; its fetchers go before.
PATIENCE = 20.0
# A read may be late by as much on a machine that has other things to do.
MARGIN = 30.0
# Of `streaming.cached`: how long a read of the library waits.
LIBRARY_TIMEOUT = 120.0
# When nothing is broken any more every reader has read by then; also how long ending may take.
RECOVERY = 120.0


class Failure(Exception):
    """Something that must not be."""


class Run:
    """One run on a stage."""

    def __init__(self, stage: Stage, report: Report) -> None:
        self._stage, self._report = stage, report
        self._undo: list[tuple[float, int, str, Callable[[], None]]] = []
        self._order = itertools.count()
        self._armed: list[Action] = []
        self._start = 0.0
        self._looked = 0.0
        self._suspects: list[tuple[float, Process]] = []

    # ---- the three parts ---------------------------------------------------------------------------------------------

    def play(self, actions: Sequence[Action], seconds: float) -> None:
        """All actions at their times, and then their ends."""
        self._start = time.monotonic()
        waiting = list(reversed(actions))
        while self._now() < seconds:
            while waiting and waiting[-1].at <= self._now():
                self._begin(waiting.pop())
            self._end_what_is_due(self._now())
            self._tick()
        self._armed.clear()
        self._end_what_is_due(float("inf"))

    def recover(self) -> None:
        """Nothing is broken any more: every reader must get right bytes again."""
        before = [reader.tally["reads"] for reader in self._stage.readers]
        deadline = self._now() + RECOVERY

        def waits() -> list[Reader]:
            pairs = zip(self._stage.readers, before, strict=True)
            return [reader for reader, count in pairs if reader.tally["reads"] <= count]

        while (late := waits()) or self._suspects:
            if late and self._now() > deadline:
                self._fail_for(late[0], f"has not read for {RECOVERY:.0f} s since nothing is broken any more")
            self._tick()
        self._report.recovery = self._now() - (deadline - RECOVERY)

    def wait_for_first_reads(self) -> None:
        """Until every reader has read once: before that there is nothing to break."""
        self._start = time.monotonic()
        while not all(reader.tally["reads"] for reader in self._stage.readers):
            if self._now() > RECOVERY:
                raise Failure("the readers did not begin to read")
            self._tick()

    # ---- actions -----------------------------------------------------------------------------------------------------

    def _now(self) -> float:
        return time.monotonic() - self._start

    def _begin(self, action: Action) -> None:
        if action.kind == "kill helper":
            # they live for moments, when an engine begins: the first one of the engine that follows
            begin(self._stage, dataclasses.replace(action, kind="kill engine"))
            self._armed.append(action)
            return
        done, undo = begin(self._stage, action)
        self._report.action(self._now(), action, done)
        if undo is not None:
            heapq.heappush(self._undo, (action.at + action.seconds, next(self._order), action.kind, undo))

    def _end_what_is_due(self, now: float) -> None:
        while self._undo and self._undo[0][0] <= now:
            _, _, kind, undo = heapq.heappop(self._undo)
            undo()
            self._report.ended(self._now(), kind)

    def _shoot(self) -> None:
        """Kill helpers that somebody waits for."""
        for action in list(self._armed):
            if named("helper"):
                self._report.action(self._now(), action, begin(self._stage, action)[0])
                self._armed.remove(action)
            elif self._now() > action.at + action.seconds:
                self._report.action(self._now(), action, "")
                self._armed.remove(action)

    # ---- watching ----------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        time.sleep(TICK)
        if self._armed:
            self._shoot()
        for reader in self._stage.readers:
            self._watch(reader)
        if time.monotonic() - self._looked > LOOK:
            self._looked = time.monotonic()
            self._look()
            if self._stage.mount.unexpected:
                raise Failure(self._stage.mount.unexpected)
            for name, disk in self._stage.disks.items():
                if disk.breach:
                    raise Failure(f"the cache {name} took {disk.breach}")

    def _look(self) -> None:
        """Whether an engine or a fetcher has crashed: a mount that fails ends the engine that it has started."""
        now = time.monotonic()
        self._suspects += [(now, process) for process in self._stage.processes.look()]
        self._suspects = [each for each in self._suspects if not self._stage.has_ended(each[1])]
        for since, process in self._suspects:
            if since < now - PATIENCE:
                raise Failure(f"ended by itself: {process}")

    def _watch(self, reader: Reader) -> None:
        assert reader.process is not None
        status = reader.process.poll()
        if status is not None:
            if status != -signal.SIGKILL or reader.pid not in self._stage.processes.killed:
                self._fail_for(reader, f"ended with {status}")
            reader.stopped_at = 0
            reader.start()
        limit = (READ_TIMEOUT if reader.kind in ("pread", "mapped") else LIBRARY_TIMEOUT) + MARGIN
        if reader.seconds_in_read() > limit:
            self._fail_for(reader, f"hangs: its read takes {reader.seconds_in_read():.0f} s")

    def _fail_for(self, reader: Reader, what: str) -> None:
        """With what the reader has said, and, if it lives, where it is."""
        assert reader.process is not None
        log = self._stage.places.logs / f"reader-{reader.number}.log"
        if reader.process.poll() is None:
            os.kill(reader.pid, signal.SIGUSR1)  # faulthandler's
            time.sleep(1)
        said = log.read_text(errors="replace")[-4000:]
        raise Failure(f"reader {reader.number} ({reader.kind}) {what}\n{said}")


def end(stage: Stage, report: Report) -> None:
    """End all as a user would, and look for what is left."""
    engines = {name: _connected(stage, name) for name in stage.disks}
    try:  # as long as somebody is connected, an engine that nobody reads from does not end by itself
        _end_readers(stage)
        for name, engine in engines.items():
            found = _settled(engine, LIMITS[name])
            report.caches[name] = {key: found[key] for key in ("charged_bytes", "disk_bytes", "held_chunks")}
            if not _is_settled(found, LIMITS[name]):
                raise Failure(f"the cache {name} without readers: {report.caches[name]}")
        _must(stage, "umount", str(stage.places.mountpoint), "--wait", str(RECOVERY))
        for name, engine in engines.items():
            cache = ["--cache-dir", str(stage.places.cache(name))]
            ended = os.pidfd_open(engine.engine["pid"])
            _must(stage, "engine", *cache, "--stop")
            if not select.select([ended], [], [], RECOVERY)[0]:
                raise Failure(f"the engine of the cache {name} was told to stop, and is there after {RECOVERY:.0f} s")
            os.close(ended)
            _must(stage, "verify", *cache)
    finally:
        for engine in engines.values():
            engine.close()
    stage.server.stop()
    _look_for_leavings(stage)


def _connected(stage: Stage, name: str) -> EngineClient:
    """To the engine of a cache, which its readers start again where it was killed as the last thing."""
    deadline = time.monotonic() + RECOVERY
    while True:
        try:
            return EngineClient.connect(stage.places.cache(name), client="cli")
        except EngineError as error:
            if time.monotonic() > deadline:
                raise Failure(f"the cache {name} has no engine: {error}") from error
        time.sleep(TICK)


def _end_readers(stage: Stage) -> None:
    for reader in stage.readers:
        reader.tally["ending"] = 1
    for reader in stage.readers:
        assert reader.process is not None
        try:
            status = reader.process.wait(RECOVERY)
        except subprocess.TimeoutExpired:
            raise Failure(f"reader {reader.number} ({reader.kind}) does not end") from None
        if status:
            raise Failure(f"reader {reader.number} ({reader.kind}) ended with {status}")


def _settled(engine: EngineClient, limit: int) -> dict[str, Any]:
    """The engine's figures of its cache, when nobody is reading and what it was fetching has come."""
    deadline = time.monotonic() + RECOVERY
    while True:
        found: dict[str, Any] = json.loads(engine.status())["cache"]
        if _is_settled(found, limit) or time.monotonic() > deadline:
            return found
        time.sleep(TICK)


def _is_settled(found: dict[str, Any], limit: int) -> bool:
    # What is on the disk was measured a moment before the rest was looked at.
    return not found["held_chunks"] and found["disk_bytes"] <= found["charged_bytes"] <= limit


def _must(stage: Stage, *arguments: str) -> None:
    done = stage.mdsfs(*arguments)
    if done.returncode:
        raise Failure(f"mdsfs {' '.join(arguments)} ended with {done.returncode}: {done.stdout}{done.stderr}")


def _look_for_leavings(stage: Stage) -> None:
    """Whatever is there still when processes that were told to end have had the time to."""
    deadline = time.monotonic() + RECOVERY
    while left := _leavings(stage):
        if time.monotonic() > deadline:
            raise Failure("left behind: " + "; ".join(left))
        time.sleep(TICK)


def _leavings(stage: Stage) -> list[str]:
    stage.processes.look()
    left = [str(each) for each in running()]
    left += [f"a mount at {stage.places.mountpoint}"] if stage.is_mounted() else []
    # a log and a lock per cache directory stay beside the sockets
    kept = {".log", ".lock"}
    folders = [Path("/run"), Path("/dev/shm"), stage.places.home / "tmp"]
    left += [
        str(path) for folder in folders for path in folder.rglob("*") if path.is_file() and path.suffix not in kept
    ]
    left += [str(path) for folder in folders for path in folder.rglob("*") if path.is_socket()]
    return left


def run(home: Path, seed: int, seconds: float) -> Report:
    """A whole run in an empty folder."""
    report = Report(seed, seconds)
    try:
        with Stage(home, seed) as stage:
            try:
                _play(stage, report, seconds)
            finally:
                report.gather(stage)
                for name in Path("/run/mdsfs").glob("*.log"):
                    shutil.copy(name, stage.places.logs)
    except Failure as failure:
        report.failure = str(failure)
    return report


def _play(stage: Stage, report: Report, seconds: float) -> None:
    playing = Run(stage, report)
    stage.mount.start()
    try:
        if not stage.mount.first.wait(RECOVERY):
            raise Failure(f"not mounted: {stage.mount.unexpected or stage.mount.failures}")
        for reader in stage.readers:
            reader.start()
        playing.wait_for_first_reads()
        playing.play(schedule(stage.seed, seconds), seconds)
        playing.recover()
        stage.mount.end()
        end(stage, report)
    finally:
        stage.mount.end()
        for each in running():
            if each.pid != stage.server.pid:
                stage.processes.kill(each)
        for reader in stage.readers:
            if reader.process is not None:
                reader.process.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 when something failed, UNAVAILABLE where it can't run."""
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__.partition("\n\n")[2])
    parser.add_argument("--minutes", type=float, default=10.0, help="how long things break (default: %(default)g)")
    parser.add_argument("--seed", type=int, help="of the schedule and the reads (default: a new one)")
    parser.add_argument("--folder", type=Path, help="where everything lies (default: the temporary directory)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the report here")
    options = parser.parse_args(arguments)
    try:
        enter_namespace("tests.chaos.run", [*(sys.argv[1:] if arguments is None else arguments)])
        seed = random.randrange(1 << 30) if options.seed is None else options.seed
        home = Path(tempfile.mkdtemp(prefix="mdsfs-chaos-", dir=options.folder))
        print(f"seed {seed}, in {home}", flush=True)
        report = run(home, seed, options.minutes * 60)
    except Unavailable as reason:
        print(f"chaos: {reason}", file=sys.stderr)
        return UNAVAILABLE
    print(report)
    if options.json:
        options.json.write_text(json.dumps(report.document(), indent=1))
    if report.failure:
        print(f"logs: {home}")
        return 1
    shutil.rmtree(home)
    return 0


if __name__ == "__main__":
    sys.exit(main())
