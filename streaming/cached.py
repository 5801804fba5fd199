"""Reading from an engine's cache: its files are mapped, and a table says which of their blocks are there.

Blocks may vanish from a map at any time, so nothing read from it is believed before the table was looked at again:
generation, bits, copy, generation (RESIDENCY.md). What is absent is asked for; what a sequential reader comes to next
is told beforehand, so that it is there in time.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from streaming.engine.client import EngineClient, Range
from streaming.engine.residency import BLOCK, ResidencyReader
from streaming.engine.spawn import EngineOptions
from streaming.errors import (
    EngineError,
    EngineUnavailableError,
    ReadTimeoutError,
    ShardCorruptError,
    StreamingError,
)
from streaming.mds.tables import load_tables
from streaming.pins import pinned_map
from streaming.remote import RemoteOptions
from streaming.sources import check_hash_name, map_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from streaming.engine.client import DirectBytes
    from streaming.reader import Decoder, ShardFile

__all__ = ["Door", "EngineFolder", "open_remote_folder"]

# What a sequential reader asks for at once: one request for many samples.
STRIDE = 4 << 20
# What it has the engine fetch ahead ends at multiples of this, as the engine's requests do: else each would be two.
PART = 16 << 20
# How far before itself it has the engine fetch: 3 GB/s at 40 ms.
WINDOW = 128 << 20
# ... of a small cache only a part, which several readers may share.
SHARE = 8
# Ranges in one message, which may be 64 KiB long.
RANGES = 1024
# The engine counts use by stretches of a file, and hears of so many with a request.
TOUCH = 1 << 20
TOUCHED = 512
# How much further than it needs a sequential reader looks into the table at once.
LOOK = 256 << 10
# How often a shard is read by copying before it is pinned for views, which takes a request to the engine.
READS = 4
# How long a read waits for bytes that are not in the cache.
READ_TIMEOUT = 120.0


@dataclass(frozen=True)
class Door:
    """How to reach an engine, and which dataset to ask it for."""

    connect: Callable[[], EngineClient]
    url: str
    identity: dict[str, Any]
    validate: str | None = None
    publish: str | None = None

    def open(self, client: EngineClient) -> int:
        """The dataset's number on this connection. Raises EngineError where the source holds none."""
        opened = client.open(self.url, self.identity, validate=self.validate, publish=self.publish)
        for each in opened.datasets:
            if each.kind == "mds" and not each.prefix.strip("/"):
                return each.dataset
        raise EngineError(f"{self.url} holds no dataset: expected an index.json there")

    @classmethod
    def from_attribute(cls, value: bytes, validate: str | None = None) -> Door:
        """The door that a mount shows in its extended attribute. Raises ValueError or KeyError for anything else."""
        found = json.loads(value)
        if not isinstance(found, dict) or found["protocol"] != 1:
            raise ValueError(f"expected an engine of protocol 1, got {value[:100]!r}")
        socket = str(found["socket"])
        prefix = str(found.get("dataset_prefix") or "").strip("/")
        url = str(found["url"]).rstrip("/") + (f"/{prefix}" if prefix else "")
        return cls(lambda: EngineClient.at_socket(socket), url, found["identity"], validate)


def open_remote_folder(
    remote: str,
    local: Path,
    split: str,
    *,
    cache_limit: int | None = None,
    attempts: int | None = None,
    read_timeout: float | None = None,
    validate_hash: str | None = None,
) -> EngineFolder:
    """A remote dataset through the engine of `local`, which is started if need be; whole shards appear in `local`."""
    options = RemoteOptions.from_environment(attempts=attempts or None, read_timeout=read_timeout)
    url = remote.removeprefix("file://").rstrip("/") + (f"/{split}" if split else "")
    if "://" not in url:
        url = os.path.realpath(url)
    # every process that opens this directory must ask for the same engine: only what was chosen counts
    engine = EngineOptions(local.absolute(), cache_limit=cache_limit)
    door = Door(
        lambda: EngineClient.connect(engine.cache_dir, engine),
        url,
        options.identity(url),
        "shard" if validate_hash else None,
        str(engine.cache_dir / split),
    )
    folder = EngineFolder(door)
    check_hash_name(folder.tables, validate_hash)
    return folder


class _Session:
    """One connection, and what was mapped over it."""

    def __init__(self, door: Door) -> None:
        self.client = door.connect()
        try:
            self.dataset = door.open(self.client)
            attached = self.client.attach(self.dataset)
        except BaseException:
            self.client.close()
            raise
        try:
            self.tables = load_tables(memoryview(map_file(attached.tables, os.fstat(attached.tables).st_size)))
            view = memoryview(map_file(attached.residency, os.fstat(attached.residency).st_size))
        finally:
            attached.close()
        self.residency = ResidencyReader(view, self.tables.bitmap_at, self.tables.files["size"])
        self.generations = view[BLOCK : BLOCK + 8 * len(self.tables.files)].cast("Q")


class EngineFolder:
    """Files in an engine's cache. After a lost engine, or a fork, the next read that misses connects anew."""

    fetches = True

    def __init__(self, door: Door, timeout: float = READ_TIMEOUT) -> None:
        self.door = door
        # the engine has been told the order: it is about to know better, and then takes no advice from us anyway
        self.quiet_until = 0.0
        self._timeout = timeout
        self._session = _Session(door)
        self.tables = self._session.tables
        self._sizes = self.tables.files["size"]
        limit = int(self._session.client.engine["options"]["cache_limit"])
        self.pinnable = limit // SHARE
        # below the stride the reader would only get in the way of others
        self.window = min(WINDOW, limit // SHARE)
        self.stride = min(STRIDE, self.window // 2)
        self._part = min(PART, self.window // 2)
        self._entered = -1
        # what was read without asking: one place in each stretch, for the engine to know what is used
        self.touched: dict[tuple[int, int], tuple[int, int]] = {}
        self._told = (-1, 0)  # how far ahead the engine was told: file, offset
        self.spare: tuple[int, int, bytes] = (-1, 0, b"")  # came uncached, and more than was needed: file, offset

    def __del__(self) -> None:
        if (session := getattr(self, "_session", None)) is not None:
            session.client.close()

    @property
    def client(self) -> EngineClient:
        """The connection, living or not."""
        return self._session.client

    @property
    def cache_dir(self) -> str:
        """Which engine this is."""
        return str(self._session.client.engine["cache_dir"])

    def try_session(self) -> _Session:
        """The living session, or a new one if an engine answers. Raises what keeps it from that, without waiting."""
        if self._session.client.closed:
            self._session = _Session(self.door)
        return self._session

    def open(self, file: int) -> ShardFile:
        """Raises what keeps the file from being read."""
        return _EngineFile(self, file, self.tables.name(file), int(self._sizes[file]))

    def entering(self, file: int) -> None:
        """A reader that opens one file after the other reads on in the next one too."""
        if file == self._entered + 1:
            self.tell(file, 0)
        self._entered = file

    def tell(self, file: int, position: int) -> None:
        """A sequential reader has come to here: have the engine fetch what comes next, as far as the window."""
        if time.monotonic() < self.quiet_until:
            return
        told_file, told = max(self._told, (file, position)) if self._told[0] <= file + 64 else (file, position)
        budget = self.window - self._distance(file, position, told_file, told)
        ranges: list[Range] = []
        while budget >= self._part > 0 and told_file < len(self._sizes) and len(ranges) < RANGES:
            left = int(self._sizes[told_file]) - told
            length = left if left <= budget else budget - (told + budget) % self._part
            if length > 0:
                ranges.append((told_file, told, length))
            budget -= length
            told += length
            if length == left:
                told_file, told = told_file + 1, 0
        self._told = (told_file, told)
        if ranges:
            self._session.client.ahead(self._session.dataset, ranges)

    def _distance(self, file: int, position: int, to_file: int, to: int) -> int:
        between = sum(int(size) for size in self._sizes[file:to_file]) if to_file > file else 0
        return between + to - position

    def prefetch(self, files: Sequence[int]) -> None:
        """Have whole files fetched, in this order, as far as the cache has room to spare; returns at once."""
        if time.monotonic() < self.quiet_until:
            return
        budget = self.window
        ranges: list[Range] = []
        for file in files:
            size = int(self._sizes[file])
            if self._session.residency.is_resident(file, 0, size):
                continue
            if (budget := budget - size) < 0 or len(ranges) == RANGES:
                break
            ranges.append((file, 0, size))
        if ranges and not self._session.client.closed:
            self._session.client.ahead(self._session.dataset, ranges)

    def is_here(self, file: int) -> bool:
        """Whether all of a file is in the cache."""
        return self._session.residency.is_resident(file, 0, int(self._sizes[file]))

    def bring(self, ranges: Sequence[Range], *, samples: bool = False) -> bool:
        """Have these ranges fetched by one request, and wait for them; False where that is not possible, or failed.

        `samples`: each range is one sample, exactly.
        """
        session = self._session
        is_here = session.residency.has_sample if samples else session.residency.is_resident
        absent = [each for each in dict.fromkeys(ranges) if not is_here(*each)]
        if session.client.closed or len(absent) > RANGES or sum(length for _, _, length in absent) > self.window:
            return False
        try:
            if absent:
                timeout = self._timeout
                with session.client.held(session.dataset, absent, samples=samples, timeout=timeout) as wanted:
                    return not wanted.direct
        except StreamingError:
            return False  # whoever reads them hears why
        return True

    def words(self, file: int, offset: int, count: int) -> NDArray[np.uint32] | None:
        """So many little-endian u32 of a file, if they are resident."""
        session = self._session
        if session.client.closed or not session.residency.is_resident(file, offset, 4 * count):
            return None
        generation = session.generations[file]
        try:
            opened = session.client.file(session.dataset, file)
        except StreamingError:
            return None
        try:
            data = os.pread(opened.fd, 4 * count, offset)
        finally:
            os.close(opened.fd)
        if session.generations[file] != generation or generation & 1 or len(data) < 4 * count:
            return None
        return np.frombuffer(data, "<u4")

    def status(self) -> dict[str, Any]:
        """The engine's status."""
        found: dict[str, Any] = json.loads(self.session(self.deadline()).client.status())
        return found

    def session(self, deadline: float) -> _Session:
        """The living session; waits for an engine to come back (the mount starts one) until the deadline."""
        pause = 0.02
        while self._session.client.closed:
            try:
                self._session = _Session(self.door)
            except EngineUnavailableError:
                # nothing tells that somebody else has started an engine but trying
                if time.monotonic() + pause > deadline:
                    raise
                time.sleep(pause)
                pause = min(2 * pause, 0.5)
        return self._session

    def deadline(self) -> float:
        """When a read that starts now gives up."""
        return time.monotonic() + self._timeout


class _Guard:
    """`whole[0]`: the generation at which all of the file was resident. While it stands, nothing was taken away."""

    __slots__ = ("file", "generations", "whole")

    def __init__(self, generations: Any, file: int, whole: int) -> None:
        self.generations, self.file, self.whole = generations, file, [whole]


class _EngineFile:
    """A cache file: mapped, and checked against the residency table after every copy."""

    def __init__(self, folder: EngineFolder, file: int, name: str, size: int) -> None:
        self.name, self.size, self.memory = name, size, 0
        self._folder, self._file = folder, file
        self._reads = 0
        self._last = self._asked = 0  # where the last read ended, and up to where the reader has told of itself
        self._in_row = False
        self._connect(folder.deadline())

    def _connect(self, deadline: float) -> None:
        """Open the file with an engine that lives, however many die meanwhile."""
        while True:
            session = self._folder.session(deadline)
            try:
                return self._adopt(session)
            except EngineUnavailableError:
                if time.monotonic() > deadline:
                    raise

    def _adopt(self, session: _Session) -> None:
        opened = session.client.file(session.dataset, self._file)
        try:
            if opened.size != self.size:
                raise ShardCorruptError(f"{self.name}: expected {self.size} bytes, the engine has {opened.size}")
            self.raw = map_file(opened.fd, self.size)
        finally:
            os.close(opened.fd)
        self._session = session
        self._known = (-1, 0, 0)  # at this generation, what lies between these offsets was found resident
        # the source's own file is what the engine neither fills nor takes away
        self.guard = None if opened.direct else _Guard(session.generations, self._file, -1)

    def pin(self) -> bool:
        """Have the file stay as it is, if all of it is in the cache and it is read often enough; `guard` is None then.

        Whoever has a view of `raw` holds the pin, see `streaming.pins`.
        """
        self._reads += 1
        session, guard = self._session, self.guard
        if guard is None or self._reads < READS or self.size > self._folder.pinnable:
            return guard is None

        def is_whole() -> bool:
            return not guard.generations[self._file] & 1 and session.residency.is_resident(self._file, 0, self.size)

        self._reads = 0
        found = None
        if is_whole():
            with suppress(EngineError):
                found = pinned_map(lambda: session.client.file(session.dataset, self._file), is_whole)
        if found is None:
            return False
        self._unpinned = self.raw, guard
        self.raw, self.guard = found, None
        return True

    def unpin(self) -> None:
        """Read by copying again; views that exist go on holding the pin."""
        self.raw, self.guard = self._unpinned

    def head(self, stop: int) -> memoryview:
        return memoryview(self._get(0, stop, sample=False))

    def decode(self, decoder: Decoder, start: int, stop: int) -> dict[str, Any]:
        if self.guard is None:
            return decoder(memoryview(self.raw), start, stop)
        return decoder(self._get(start, stop, sample=True), 0, stop - start)

    def _get(self, start: int, stop: int, *, sample: bool) -> bytes:
        """A copy of these bytes, fetched if need be; `sample`: they are one sample, exactly."""
        if self.guard is None:
            stable: bytes = self.raw[start:stop]
            return stable
        # whoever happens to read two samples in a row reads no row of them: each read must follow the one before
        self._in_row = start == self._last
        if self._in_row and start >= self._asked:
            self._go_on(start)
        self._last = stop
        found = self._copy(start, stop, sample=sample)
        if found is not None:
            return found
        file, at, spare = self._folder.spare
        if file == self._file and at <= start and stop <= at + len(spare):
            return spare[start - at : stop - at]
        return self._wait(start, stop, sample=sample)

    def _go_on(self, start: int) -> None:
        """A sequential reader is here."""
        folder, guard = self._folder, self.guard
        if folder.stride and guard and guard.whole[0] != guard.generations[self._file]:
            folder.tell(self._file, start)
        self._asked = start + max(folder.stride // 2, 1)

    def _copy(self, start: int, stop: int, *, sample: bool) -> bytes | None:
        """A copy of these bytes if they are resident."""
        guard, file = self.guard, self._file
        if guard is None:  # came with a session in which the source's own file is read
            stable: bytes = self.raw[start:stop]
            return stable
        generation = guard.generations[file]
        if generation != guard.whole[0]:
            known = self._known
            is_known = known[0] == generation and known[1] <= start and stop <= known[2]
            if not is_known and (generation & 1 or not self._look(guard, generation, start, stop, sample)):
                return None
            if len(touched := self._folder.touched) < TOUCHED:
                touched[file, start // TOUCH] = (file, start)
        data: bytes = self.raw[start:stop]
        return data if guard.generations[file] == generation else None

    def _look(self, guard: _Guard, generation: int, start: int, stop: int, sample: bool) -> bool:
        """Whether these bytes are resident; what a sequential reader comes to next is looked at with them."""
        residency, file = self._session.residency, self._file
        if not (residency.has_sample if sample else residency.is_resident)(file, start, stop - start):
            return False
        if residency.is_resident(file, 0, self.size):
            guard.whole[0] = generation
        elif start == self._known[2]:
            further = min(stop + LOOK, self.size)
            stop = further if residency.is_resident(file, stop, further - stop) else stop
        self._known = (generation, start, stop)
        return True

    def _wait(self, start: int, stop: int, *, sample: bool) -> bytes:
        deadline = self._folder.deadline()
        while True:
            try:
                fetched = self._fetch(start, stop, deadline, sample=sample)
            except EngineUnavailableError:
                self._connect(deadline)
                continue
            if fetched is None:
                fetched = self._copy(start, stop, sample=sample)
            if fetched is not None:
                return fetched

    def _fetch(self, start: int, stop: int, deadline: float, *, sample: bool) -> bytes | None:
        """Have the engine bring these bytes; None if they came, but not for good."""
        session = self._folder.session(deadline)
        if session is not self._session:
            self._adopt(session)
            session = self._session
        left = deadline - time.monotonic()
        if left <= 0:
            raise ReadTimeoutError(f"{self.name}: bytes {start} to {stop} did not come in time")
        ahead = stop
        # a sequential reader: one request for many samples
        if self._in_row and self._asked > start and time.monotonic() >= self._folder.quiet_until:
            ahead = min(max(stop, start + self._folder.stride // 2), self.size)
        ranges = [(self._file, start, stop - start)]
        if ahead > stop:
            ranges.append((self._file, stop, ahead - stop))
            sample = False
        touched = self._folder.touched
        self._folder.touched = {}
        touch = touched.values()
        with session.client.held(session.dataset, ranges, samples=sample, timeout=left, touch=touch) as wanted:
            if wanted.direct:
                return self._assemble(wanted.direct, start, stop)
            # held: what is copied now can't be taken away
            data: bytes = self.raw[start:stop]
            return data if session.client.is_alive() else None

    def _assemble(self, pieces: Sequence[DirectBytes], start: int, stop: int) -> bytes | None:
        """Pieces that came uncached; what the reader comes to next is kept."""
        positions: dict[int, int] = {}
        found: dict[int, bytes] = {}
        for piece in pieces:
            at = positions.get(piece.fd, 0)
            positions[piece.fd] = at + piece.length
            found[piece.offset] = os.pread(piece.fd, piece.length, at)
        if stop in found:
            self._folder.spare = (self._file, stop, found[stop])
        if start in found:
            return found[start]
        return self._copy(start, stop, sample=True)
