"""An object's bytes in order, with several ranged gets under way ahead of whoever takes them.

The taker's own thread reads what no helper has begun; helpers read ahead into large buffers, as far as there are free
ones. So nobody ever waits for a free helper or buffer, memory is bounded for the whole process, and with all helpers
busy a stream is merely as fast as one connection.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from typing import TYPE_CHECKING, Protocol

from streaming.errors import ShardCorruptError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from streaming.remote import RangeReader, Remote

    from .sink import Sink

__all__ = ["Helpers", "ObjectParts", "fill"]

# Parts under way at the same time, the taker's own included.
WINDOW = 4


def fill(reader: RangeReader, buffer: memoryview) -> int:
    """Read until the buffer is full or the range ends."""
    got = 0
    while got < len(buffer):
        count = reader.readinto(buffer[got:])
        if not count:
            break
        got += count
    return got


class _Fetching(Protocol):
    def fetch(self) -> None: ...


class Helpers:
    """Threads that read parts ahead, and the buffers that they read into, shared by all streams of the process."""

    def __init__(self, threads: int, part_size: int) -> None:
        self.part_size = part_size
        self._todo: queue.SimpleQueue[_Fetching] = queue.SimpleQueue()
        self._free: list[memoryview] = []
        self._unmade = threads
        self._lock = threading.Lock()
        for number in range(threads):
            threading.Thread(target=self._work, name=f"ahead-{number}", daemon=True).start()

    def _work(self) -> None:
        while True:
            self._todo.get().fetch()

    def submit(self, part: _Fetching) -> None:
        """Have a part fetched when a thread is free."""
        self._todo.put(part)

    def take_buffer(self) -> memoryview | None:
        """A buffer of `part_size`, if one is free."""
        with self._lock:
            if self._free:
                return self._free.pop()
            if not self._unmade:
                return None
            self._unmade -= 1
        return memoryview(bytearray(self.part_size))

    def give_buffer(self, buffer: memoryview) -> None:
        """Hand a buffer back."""
        with self._lock:
            self._free.append(buffer)


class _Part:
    """One range on its way. Whoever claims it first, helper or taker, reads it."""

    def __init__(self, parts: ObjectParts, start: int, stop: int, buffer: memoryview) -> None:
        self._parts = parts
        self.start = start
        self.stop = stop
        self._buffer = buffer
        self._changed = threading.Condition()
        self._claimed = False
        self._filled = 0
        self._error: BaseException | None = None
        self._owners = 2  # of the buffer: helper and taker

    def claim(self) -> bool:
        """Whether the caller is the first."""
        with self._changed:
            mine, self._claimed = not self._claimed, True
            return mine

    def fetch(self) -> None:
        """The helper's side."""
        try:
            if self.claim():
                self._read()
        except Exception as error:  # it belongs to the taker, who is not this thread
            with self._changed:
                self._error = error
                self._changed.notify()
        finally:
            self.disown()

    def _read(self) -> None:
        want = self.stop - self.start
        with self._parts.open(self.start, self.stop) as reader, self._parts.sink.watching(reader):
            while self._filled < want:
                got = reader.readinto(self._buffer[self._filled : want])
                if not got:
                    raise ShardCorruptError(f"the store ended {want - self._filled} bytes early")
                with self._changed:
                    self._filled += got
                    self._changed.notify()

    def taken(self) -> Iterator[memoryview]:
        """The taker's side: bytes as they come. They are void at the next step."""
        at, want = 0, self.stop - self.start
        while at < want:
            with self._changed:
                while self._filled == at and self._error is None:
                    self._changed.wait()
                if self._filled == at and self._error is not None:
                    raise self._error
                filled = self._filled
            yield self._buffer[at:filled]
            at = filled

    def disown(self) -> None:
        """One of the two is done with the buffer."""
        with self._changed:
            self._owners -= 1
            last = not self._owners
        if last:
            self._parts.helpers.give_buffer(self._buffer)


class ObjectParts:
    """The object `key` from its start to `stop`. The first answer names the version for all the others."""

    def __init__(
        self, remote: Remote, key: str, etag: str | None, size: int, *, helpers: Helpers, sink: Sink, buffer: memoryview
    ) -> None:
        self.etag = etag
        self.size: int | None = None
        self.helpers = helpers
        self.sink = sink
        self._remote = remote
        self._key = key
        self._stop = size
        self._buffer = buffer
        self._ahead: deque[_Part] = deque()
        self._next = 0

    def open(self, start: int, stop: int) -> RangeReader:
        """A get of one range, of the version of the first answer."""
        return self._remote.open_range(self._key, start, stop, etag=self.etag, size=self._stop)

    def pieces(self) -> Generator[memoryview, None, None]:
        """All bytes in order; each piece is void at the next step. Close the iterator to end early."""
        at = 0
        try:
            while at < self._stop:
                stop = min(at + self.helpers.part_size, self._stop)
                part = self._ahead.popleft() if self._ahead else None
                if part is None:
                    self._next = max(self._next, stop)
                    yield from self._inline(at, stop)
                else:
                    stop = part.stop
                    yield from self._from(part)
                at = stop
        finally:
            self._abandon()

    def _from(self, part: _Part) -> Iterator[memoryview]:
        try:
            self._look_ahead()
            if part.claim():
                yield from self._inline(part.start, part.stop)
            else:
                yield from part.taken()
        finally:
            part.disown()

    def _inline(self, start: int, stop: int) -> Iterator[memoryview]:
        left = stop - start
        with self.open(start, stop) as reader, self.sink.watching(reader):
            while left:
                got = fill(reader, self._buffer[:left])
                if not got:
                    raise ShardCorruptError(f"the store ended {left} bytes early")
                if self.size is None:
                    self._first_answer(reader)
                self._look_ahead()
                yield self._buffer[:got]
                left -= got

    def _first_answer(self, reader: RangeReader) -> None:
        self.size = reader.size if reader.size is not None else self._stop
        if self.size != self._stop:
            raise ShardCorruptError(f"expected a stored object of {self._stop} bytes, got one of {self.size}")
        if self.etag is None and reader.etag is not None:
            self.etag = reader.etag
            self.sink.seen(self.etag)

    def _look_ahead(self) -> None:
        while len(self._ahead) < WINDOW - 1 and self._next < self._stop:
            buffer = self.helpers.take_buffer()
            if buffer is None:
                return
            stop = min(self._next + self.helpers.part_size, self._stop)
            part = _Part(self, self._next, stop, buffer)
            self._next = stop
            self._ahead.append(part)
            self.helpers.submit(part)

    def _abandon(self) -> None:
        for part in self._ahead:
            part.claim()
            part.disown()
        if self._ahead:
            self.sink.stop_reading()
