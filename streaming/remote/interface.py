"""Owns what a remote is: the words (object, range, key) and the promises every store keeps.

A remote is synchronous and may be used from many threads at once. Keys are relative to the remote's URL, separated by
'/'. Whatever goes wrong is an error of `streaming.errors`; data is either right or an exception, never short.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from streaming.errors import DatasetError, ObjectChangedError, StreamingError, UnsupportedSourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from streaming.remote.options import RemoteOptions


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One stored object; a folder in a listing that does not recurse has a key that ends in '/'."""

    key: str
    size: int
    etag: str | None
    mtime_ns: int


class SmallRange(NamedTuple):
    """Bytes `start:stop` of a version of an object, few enough to be in memory at once."""

    key: str
    start: int
    stop: int
    etag: str
    size: int | None
    """Of the whole object, where it is known."""


class ManyReader(Protocol):
    """A call that reads many small ranges, under way."""

    quickest: float
    """Seconds that the range took that took least; infinite before the first."""

    def run(self) -> None:
        """Read them; returns when nothing more will come."""
        ...

    def cancel(self) -> None:
        """From any thread: nobody wants the rest."""
        ...


class Counters:
    """What a remote has done so far; safe to add to from any thread."""

    __slots__ = ("_lock", "_values")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values = {"requests": 0, "bytes": 0, "errors": 0, "retries": 0}

    def add(self, name: str, amount: int = 1) -> None:
        """Add to one of requests, bytes, errors, retries."""
        with self._lock:
            self._values[name] += amount

    def after_fork(self) -> None:
        """In the child of a fork: the lock may be held by a thread that does not exist here."""
        self._lock = threading.Lock()

    def snapshot(self) -> dict[str, int]:
        """All counters at one instant."""
        with self._lock:
            return dict(self._values)


class RangeReader(ABC):
    """The bytes of one range, in order. Nothing is asked of the store before the first `readinto`, `etag` or `size`.

    Used by one thread; only `cancel` may come from another one.
    """

    @abstractmethod
    def readinto(self, buffer: memoryview) -> int:
        """Fill the buffer from its start as far as is cheap; 0 only at the end of the range."""

    def splice(self, pipe: int, most: int) -> int | None:
        """Move the next bytes of the range, `most` at most, into an empty pipe, past this process's memory.

        How many those were, 0 only at the end of the range; None where that can't be done, and `readinto` can.
        """
        del pipe, most
        return None

    @property
    @abstractmethod
    def etag(self) -> str | None:
        """The version being read, as the store names it."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Bytes of the whole object."""

    @property
    @abstractmethod
    def mtime_ns(self) -> int:
        """When the store says that the object was written; 0 where it does not say."""

    @abstractmethod
    def cancel(self) -> None:
        """From any thread: a running or later `readinto` raises RemoteError soon."""

    @abstractmethod
    def close(self) -> None:
        """Give back what the reader holds; again is harmless."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class Remote(ABC):
    """A place that holds objects: a bucket's prefix, or a directory."""

    def __init__(self, url: str, options: RemoteOptions) -> None:
        self.url = url
        self.options = options
        self.counters = Counters()

    def prepare(self) -> None:  # noqa: B027 - most remotes have nothing to prepare
        """Do now, without a request, what the first request would have to do first."""

    @abstractmethod
    def stat(self, key: str) -> ObjectInfo:
        """Size and version of one object. The read path never needs this: sizes come from the index."""

    @abstractmethod
    def open_range(
        self,
        key: str,
        start: int = 0,
        stop: int | None = None,
        *,
        etag: str | None = None,
        size: int | None = None,
        deadline: float | None = None,
    ) -> RangeReader:
        """The bytes from `start` to before `stop` (None: the end).

        With `etag` or `size` an object that is another one raises ObjectChangedError. `deadline` is a time of
        `time.monotonic()`: past it, ReadTimeoutError.
        """

    @abstractmethod
    def list(self, prefix: str = "", *, recursive: bool = True) -> Iterator[ObjectInfo]:
        """Objects whose key starts with `prefix`, sorted by the bytes of the key."""

    @abstractmethod
    def put(self, key: str, data: bytes | Path, *, progress: Callable[[int], None] | None = None) -> None:
        """Write one object whole; `progress` is told the bytes of each piece that has been sent."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove one object; one that is not there is no error."""

    def local_path(self, key: str) -> Path | None:
        """The object as a file on this host, where it is one."""
        check_key(key)
        return None

    def read(
        self, key: str, *, start: int = 0, stop: int | None = None, etag: str | None = None, limit: int | None = None
    ) -> tuple[bytes, ObjectInfo]:
        """A small object, or a part of one, with what the store said about it; more than `limit` bytes is refused."""
        with self.open_range(key, start, stop, etag=etag) as reader:
            info = ObjectInfo(key, reader.size, reader.etag, reader.mtime_ns)
            wanted = (info.size if stop is None else stop) - start
            if limit is not None and wanted > limit:
                raise DatasetError(f"{join_url(self.url, key)}: {wanted} bytes, more than the {limit} allowed here")
            data = bytearray(wanted)
            _fill(reader, memoryview(data))
            return bytes(data), info

    def read_many(self, wanted: Sequence[SmallRange], taken: Callable[[int, memoryview], None]) -> ManyReader:
        """What reads many small ranges when it is run, in any order: `taken(number, bytes)` hears of each that came.

        The bytes are void after that call. Of what does not come nothing is said: to read such a range by itself tells
        why. What `taken` raises ends the reading.
        """
        return _OneByOne(self, wanted, taken)

    def get_range(self, key: str, start: int, stop: int, into: memoryview, *, etag: str | None = None) -> str | None:
        """Read exactly the range into the buffer; returns the version's ETag."""
        with self.open_range(key, start, stop, etag=etag) as reader:
            _fill(reader, into[: stop - start])
            return reader.etag


class _OneByOne:
    """Many small ranges, one after another: for stores that do not make a caller wait."""

    def __init__(self, remote: Remote, wanted: Sequence[SmallRange], taken: Callable[[int, memoryview], None]) -> None:
        self._remote, self._wanted, self._taken = remote, wanted, taken
        self._cancelled = False
        self.quickest = float("inf")

    def run(self) -> None:
        for number, each in enumerate(self._wanted):
            if self._cancelled:
                return
            begun, data = time.monotonic(), memoryview(bytearray(each.stop - each.start))
            try:
                with self._remote.open_range(each.key, each.start, each.stop, etag=each.etag, size=each.size) as reader:
                    _fill(reader, data)
            except StreamingError:
                continue
            self.quickest = min(self.quickest, time.monotonic() - begun)
            self._taken(number, data)

    def cancel(self) -> None:
        self._cancelled = True


def _fill(reader: RangeReader, into: memoryview) -> None:
    at = 0
    while at < len(into):
        count = reader.readinto(into[at:])
        if count == 0:
            raise ObjectChangedError(f"the range ended {len(into) - at} bytes early")
        at += count


def check_key(key: str) -> str:
    """The key itself, if it names something inside the remote; what could leave it is refused."""
    if not is_key(key):
        raise UnsupportedSourceError(f"{key!r} is not a key: use names separated by '/', without '.' or '..'")
    return key


def is_key(key: str) -> bool:
    """Could this name an object inside a remote."""
    return "\0" not in key and not {"", ".", ".."}.intersection(key.split("/"))


def join_url(url: str, key: str) -> str:
    """The object's own URL, for messages."""
    return f"{url.rstrip('/')}/{key}"
