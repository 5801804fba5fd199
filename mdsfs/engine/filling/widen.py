"""How much to fetch around a read of which nothing is known but the reads before it. Pure.

A first or stray read fetches its own surroundings (128 KiB, aligned): random readers pay little. Two adjacent reads on
a handle start a stream: four reads ahead of the reader, at least 1 MiB, then twice as much each time the reader has
used half of it, past the end of the file into the files that follow it by name. A reader asks only for what is absent,
so it is normal that the next request of a stream starts where the last plan ended, not where the last read did; and a
reader that goes on in the next file does so on another handle, which takes over the stream that has run into that file.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["GRAIN", "MAX_WINDOW", "SURE_WINDOW", "Reach", "Widener"]

# What one stray read fetches: the kernel's default readahead, and small beside the 2 MiB that a 4 KiB read may cost.
GRAIN = 128 * 1024
FIRST_WINDOW, READS = 1 << 20, 4
# Of a dataset whose order is known only who has read some megabytes in a row is served as a stream: somebody who copies
# a file, not a sample that is larger than one read.
SURE_WINDOW = 4 << 20
# Enough for 2 GB/s at 60 ms, and two or more whole shards of the usual sizes.
MAX_WINDOW = 128 << 20
PART = 16 << 20
# Handles remembered per client; the one used longest ago starts over as a stray reader.
MAX_STREAMS = 1024

Span = tuple[int, int, int]  # file, start, stop


@dataclass(frozen=True, slots=True)
class Reach:
    """What to fetch for one read: its surroundings now, and what lies ahead when there is room and time."""

    demand: Span
    ahead: tuple[Span, ...]
    window: int = 0
    """How far ahead of itself the stream is served; 0 for a stray read."""


@dataclass(slots=True)
class _Stream:
    """One reader on its way. `planned`: how far it has been planned, in bytes from the start of `file`."""

    file: int
    position: int
    planned: int
    window: int


class Widener:
    """The streams of one client in one dataset. `size_of(file)` is None where there is no file to widen into."""

    def __init__(self, size_of: Callable[[int], int | None], max_window: int = MAX_WINDOW) -> None:
        self._size_of = size_of
        self._max_window = max_window
        self._streams: OrderedDict[int, _Stream] = OrderedDict()
        # file → the stream that has been planned into it from the file before
        self._arrivals: OrderedDict[int, _Stream] = OrderedDict()

    def reach(self, handle: int, file: int, offset: int, length: int) -> Reach:
        """The plan for a read of absent bytes of `file`; moves the handle's stream along."""
        size = self._size_of(file) or 0
        stop = min(offset + length, size)
        stream = self._stream_at(handle, file, offset, max(GRAIN, READS * length))
        if stream is None:
            return self._start(handle, file, offset, stop, size)
        self._advance(stream, stop, length)
        start, end = _surroundings(offset, stop, size) if not stream.window else (offset, stop)
        return Reach((file, start, end), self._ahead(stream, end), stream.window)

    def _stream_at(self, handle: int, file: int, offset: int, near: int) -> _Stream | None:
        """The stream that this read continues, perhaps not in order: the kernel reads several pieces ahead at once."""
        stream = self._streams.get(handle)
        if stream is None or stream.file != file:
            arrived = self._arrivals.pop(file, None)
            if arrived is not None and offset <= max(arrived.planned, GRAIN):
                stream = arrived
                self._remember(handle, stream)
        if stream is None or stream.file != file or not stream.position - near <= offset <= stream.planned + near:
            return None
        self._streams.move_to_end(handle)
        return stream

    def _start(self, handle: int, file: int, offset: int, stop: int, size: int) -> Reach:
        start, end = _surroundings(offset, stop, size)
        self._remember(handle, _Stream(file, stop, end, 0))
        return Reach((file, start, end), ())

    def _advance(self, stream: _Stream, stop: int, length: int) -> None:
        stream.position = max(stream.position, stop)
        if not stream.window:
            stream.window = min(max(FIRST_WINDOW, READS * length), self._max_window)
        elif stop + stream.window // 2 >= stream.planned:
            stream.window = min(stream.window * 2, self._max_window)

    def _ahead(self, stream: _Stream, end: int) -> tuple[Span, ...]:
        """What the stream should have fetched beyond `end`, and has not been planned yet."""
        wanted = stream.position + stream.window
        if stream.planned - stream.position >= stream.window // 2 and stream.planned > end:
            return ()
        start, stream.planned = max(end, stream.planned), max(wanted, stream.planned)
        # a large window ends where the engine's requests do, or each end of one would be a request of its own
        grain = PART if stream.window >= PART else 1
        spans: list[Span] = []
        entered: list[tuple[int, int]] = []
        file, base = stream.file, 0
        while (size := self._size_of(file)) is not None and start < stream.planned:
            if start - base < size:
                stop = stream.planned - base
                stop = min(stop + -stop % grain, size)
                spans.append((file, start - base, stop))
                start = base + stop
                stream.planned = max(stream.planned, start)
            base, file = base + size, file + 1
            if start < stream.planned:
                entered.append((file, base))
        for into, base in entered:
            self._arrive(into, stream.window, stream.planned - base)
        return tuple(spans)

    def _arrive(self, file: int, window: int, planned: int) -> None:
        self._arrivals[file] = _Stream(file, 0, max(planned, 0), window)
        self._arrivals.move_to_end(file)
        while len(self._arrivals) > MAX_STREAMS:
            self._arrivals.popitem(last=False)

    def _remember(self, handle: int, stream: _Stream) -> None:
        self._streams[handle] = stream
        self._streams.move_to_end(handle)
        while len(self._streams) > MAX_STREAMS:
            self._streams.popitem(last=False)


def _surroundings(start: int, stop: int, size: int) -> tuple[int, int]:
    """The range rounded out to GRAIN."""
    return start - start % GRAIN, min(stop + -stop % GRAIN, size)
