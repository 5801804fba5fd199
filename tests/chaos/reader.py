"""A reader process of the chaos run: `python -m tests.chaos.reader KIND NUMBER SEED HOME URL LIMIT`.

Reads until it is told to end, and compares every byte. Each failed read is a line of JSON in its log; whatever is no
error that the documents name ends it with status 4, a wrong byte with 3.
"""

from __future__ import annotations

import errno
import faulthandler
import json
import mmap
import os
import random
import signal
import sys
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streaming import LocalDataset, Stream, StreamingDataset
from streaming.errors import RemoteError, StreamingError
from tests.chaos.data import FORMS, SAMPLES, Places
from tests.chaos.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["DOORS", "WRONG_BYTES"]

WRONG_BYTES, WRONG_ERROR = 3, 4
LONGEST_READ = 64 << 10
# Reads go on where the last one ended, but for this part of them.
JUMP = 0.1
# After a failed read a program does something else before it tries again.
PAUSE = 0.05
# What reads of a mount may end with: the read failed, or its process was killed (before, or under the read).
MOUNT_ERRORS = {errno.EIO, errno.ENOTCONN, errno.ECONNABORTED}
# What a job ends with that one fetcher after another died of: on a slow machine it lasts as long as they are killed in.
MANY_KILLED = "fetchers died while working on"


class WrongBytesError(Exception):
    """What was read is not what was written."""


def compare(got: Any, want: Any, what: str) -> int:
    """Their length; raises WrongBytesError where they differ."""
    if got == want:
        return len(want)
    got, want = bytes(got), bytes(want)
    first = next((at for at, pair in enumerate(zip(got, want, strict=False)) if pair[0] != pair[1]), len(want))
    zeros = got[first : first + 4096].count(0)
    raise WrongBytesError(
        f"{what}: {len(got)} bytes of {len(want)}, the first wrong one at {first}: {got[first : first + 16].hex()} for "
        f"{want[first : first + 16].hex()}, {zeros} zeros in the 4 KiB from there"
    )


class Door:
    """One way to read. `opens` is an iterator of reads: each step is one, and yields the bytes that were right."""

    opening = frozenset[int]()  # errnos that opening may end with beyond those of reading
    errnos = frozenset[int]()

    def __init__(self, places: Places, draw: random.Random, url: str, limit: str) -> None:
        self.places, self.draw, self.url, self.limit = places, draw, url, limit

    def reads(self) -> Iterator[int]:
        raise NotImplementedError

    def accepts(self, error: Exception, *, opening: bool) -> bool:
        """Whether the documents name this error."""
        if isinstance(error, StreamingError):
            return isinstance(error, RemoteError) or error.retryable or MANY_KILLED in str(error)
        allowed = self.errnos | (self.opening if opening else frozenset())
        return isinstance(error, OSError) and error.errno in allowed


class FileDoor(Door):
    """Files of the mount. While a dead mount is replaced, its folder is empty for a moment."""

    opening = frozenset({errno.ENOENT})
    errnos = frozenset(MOUNT_ERRORS)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.truth = {}
        for path in sorted(self.places.truth.glob("*/shard.*.mds")):
            with path.open("rb") as file:
                self.truth[path.relative_to(self.places.truth)] = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)

    def reads(self) -> Iterator[int]:
        fds = {}
        try:
            for name in self.truth:
                fds[name] = os.open(self.places.mountpoint / name, os.O_RDONLY | os.O_CLOEXEC)
            yield 0
            for name, fd in fds.items():
                self.prepare(name, fd)
            name, at = Path(), 0
            while True:
                if not at or self.draw.random() < JUMP:
                    name = self.draw.choice(list(fds))
                    at = self.draw.randrange(len(self.truth[name]))
                want = self.truth[name]
                size = min(self.draw.randrange(1, LONGEST_READ), len(want) - at)
                yield compare(self.read(name, fds[name], at, size), want[at : at + size], f"{name} at {at}")
                # or the kernel would answer the next read of these pages
                os.posix_fadvise(fds[name], at, size, os.POSIX_FADV_DONTNEED)
                at = (at + size) % len(want)
        finally:
            for fd in fds.values():
                os.close(fd)

    def prepare(self, name: Path, fd: int) -> None:
        raise NotImplementedError

    def read(self, name: Path, fd: int, at: int, size: int) -> Any:
        raise NotImplementedError


class PreadDoor(FileDoor):
    """pread of the mounted files."""

    def prepare(self, name: Path, fd: int) -> None:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)

    def read(self, name: Path, fd: int, at: int, size: int) -> Any:
        data = b""
        # where a later page fails the kernel gives what it has; the read of the rest says why
        while len(data) < size and (piece := os.pread(fd, size - len(data), at + len(data))):
            data += piece
        return data


class MappedDoor(FileDoor):
    """The mounted files, mapped. write(2) copies from the maps: it says EFAULT where a program would get SIGBUS."""

    errnos = frozenset({*MOUNT_ERRORS, errno.EFAULT})

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.maps: dict[Path, mmap.mmap] = {}
        self.scratch = os.memfd_create("chaos-reader", os.MFD_CLOEXEC)

    def prepare(self, name: Path, fd: int) -> None:
        self.maps[name] = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
        self.maps[name].madvise(mmap.MADV_RANDOM)

    def read(self, name: Path, fd: int, at: int, size: int) -> Any:
        with memoryview(self.maps[name]) as view:
            done = 0
            while done < size:
                done += os.pwrite(self.scratch, view[at + done : at + size], done)
        self.maps[name].madvise(mmap.MADV_DONTNEED)
        return os.pread(self.scratch, size, 0)


class SampleDoor(Door):
    """Samples of the library, compared with those of plain folders. On the mount it may have to read files there."""

    opening = frozenset({errno.ENOENT})
    errnos = frozenset(MOUNT_ERRORS)
    zero_copy = False

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.truth = {form: LocalDataset(str(self.places.truth / form)) for form in FORMS}
        self.views: deque[tuple[int, Any]] = deque()
        self.looked_again = 0

    def numbers(self) -> Iterator[int]:
        """Runs of samples."""
        number = 0
        while True:
            if self.draw.random() < JUMP:
                number = self.draw.randrange(len(FORMS) * SAMPLES)
            yield number
            number = (number + 1) % (len(FORMS) * SAMPLES)

    def check(self, number: int, sample: dict[str, Any]) -> int:
        """Bytes of a sample that is right."""
        want = self.truth[list(FORMS)[number // SAMPLES]][number % SAMPLES]
        if sample["id"] != number:
            raise WrongBytesError(f"sample {number}: its id is {sample['id']}")
        if isinstance(sample["data"], memoryview):
            self.views.append((number, sample["data"]))
        return compare(sample["data"], want["data"], f"sample {number}")

    def look_again(self, keep: int) -> None:
        """Views that were held for a while must not have changed."""
        while len(self.views) > keep:
            number, data = self.views.popleft()
            want = self.truth[list(FORMS)[number // SAMPLES]][number % SAMPLES]["data"]
            compare(data, want, f"sample {number}, a view that was held")
            self.looked_again += 1


class LocalDoor(SampleDoor):
    """LocalDataset on the mount: maps the engine's files."""

    def reads(self) -> Iterator[int]:
        datasets = [LocalDataset(str(self.places.mountpoint / form)) for form in FORMS]
        yield 0
        for number in self.numbers():
            yield self.check(number, datasets[number // SAMPLES][number % SAMPLES])


class StreamingDoor(SampleDoor):
    """One StreamingDataset of all three."""

    shuffle = False

    def dataset(self) -> StreamingDataset:
        return StreamingDataset(
            streams=self.streams(),
            shuffle=self.shuffle,
            shuffle_seed=self.draw.randrange(1000),
            batch_size=8,
            cache_limit=self.limit if self.streams()[0].remote else None,
            zero_copy=self.zero_copy,
        )

    def streams(self) -> list[Stream]:
        cache = self.places.cache("remote")
        return [Stream(remote=self.url, local=str(cache), split=form) for form in FORMS]


class RemoteDoor(StreamingDoor):
    """`remote=`: samples by way of the engine of `local`."""

    def reads(self) -> Iterator[int]:
        dataset = self.dataset()
        yield 0
        for number in self.numbers():
            yield self.check(number, dataset[number])


class RemoteEpochDoor(StreamingDoor):
    """Whole shuffled epochs of `remote=` by views of the engine's files, each looked at twice."""

    shuffle = zero_copy = True

    def reads(self) -> Iterator[int]:
        dataset = self.dataset()
        yield 0
        while True:
            seen = []
            for sample in dataset:
                seen.append(sample["id"])
                size = self.check(sample["id"], sample)
                self.look_again(16)
                yield size
            if sorted(seen) != list(range(len(FORMS) * SAMPLES)):
                raise WrongBytesError(f"an epoch had {len(seen)} samples, {len(set(seen))} different ones")
            self.look_again(0)
            yield -1


class MountEpochDoor(RemoteEpochDoor):
    """Whole shuffled epochs through the mount."""

    zero_copy = False

    def streams(self) -> list[Stream]:
        return [Stream(local=str(self.places.mountpoint / form)) for form in FORMS]


DOORS: dict[str, type[Door]] = {
    "pread": PreadDoor,
    "mapped": MappedDoor,
    "samples": LocalDoor,
    "remote": RemoteDoor,
    "epochs": MountEpochDoor,
    "remote-epochs": RemoteEpochDoor,
}


def describe(error: Exception) -> str:
    """A cause to count by: the errno, and our own class where it is one of ours."""
    number = type(error).errno if isinstance(error, StreamingError) else getattr(error, "errno", None)
    name = errno.errorcode.get(number, str(number)) if isinstance(number, int) else "none"
    return f"{name} {type(error).__name__}" if isinstance(error, StreamingError) else name


def read_on(door: Door, tally: Tally, log: Any) -> None:
    """Open and read until something fails, or the run has us end."""
    reads, opening = door.reads(), True
    try:
        while not tally["ending"]:
            tally.begin()
            error = None
            try:
                size = next(reads)
            except Exception as found:
                if isinstance(found, WrongBytesError):
                    raise
                error = found
            seconds = tally.end()
            if error is not None:
                accepted = door.accepts(error, opening=opening)
                line = {"at": time.monotonic(), "cause": describe(error), "opening": opening, "seconds": seconds}
                log.write(json.dumps(line | {"message": str(error), "accepted": accepted}) + "\n")
                log.flush()
                if not accepted:
                    raise error
                time.sleep(PAUSE)
                return
            opening = False
            if size > 0:
                tally.count(size)
            elif size < 0:
                tally["passes"] += 1
            if isinstance(door, SampleDoor):
                tally["views"] += door.looked_again
                door.looked_again = 0
    finally:
        reads.close()  # type: ignore[attr-defined]  # a generator


def main() -> int:
    kind, number, seed, home, url, limit = sys.argv[1:]
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    places = Places(Path(home))
    door = DOORS[kind](places, random.Random(seed), url, limit)
    tally = Tally(places.logs / f"reader-{number}.tally")
    with (places.logs / f"reader-{number}.errors").open("a") as log:
        try:
            while not tally["ending"]:
                read_on(door, tally, log)
        except WrongBytesError as error:
            print(f"wrong bytes by {kind}: {error}", file=sys.stderr, flush=True)
            return WRONG_BYTES
        except Exception:
            import traceback

            traceback.print_exc()
            return WRONG_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
