"""Where samples lie in this process's own memory: addresses, so that numpy can gather from many maps in one call.

Owns the views of memory as one array, and per dataset the tables from sample to address. Whoever reads at an address
keeps what is mapped there alive (`Located.kept`), and asks `Located.is_right` after copying: a file in an engine's
cache may have lost blocks meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from streaming.mds.tables import DatasetTables
    from streaming.reader import Guard, ShardFile

    Ints = NDArray[np.int64]
    Opened = Callable[[int], tuple[ShardFile, memoryview]]

__all__ = ["Addresses", "Located", "address_of", "memory"]

# No map lies below: the kernel keeps the first page free, so that a null pointer points nowhere.
FIRST = 4096
# User space of x86-64 and arm64: 2^47 or 2^48 bytes.
LAST = 1 << 48
# Offsets of all samples of a dataset, 4 bytes each, are kept for datasets up to this many samples.
LISTED_SAMPLES = 1 << 23


@lru_cache(maxsize=64)
def memory(dtype: str) -> NDArray[Any]:
    """A value of this type at every address: `memory(dtype)[addresses - FIRST]` are copies of what is there.

    Read-only. Only addresses of living objects may be looked at; any other one ends the process.
    """

    class Everything:
        size = np.dtype(dtype).itemsize
        __array_interface__ = {  # noqa: RUF012 - numpy's protocol
            "shape": (LAST - FIRST - size,),
            "typestr": dtype,
            "data": (FIRST, True),
            "strides": (1,),
            "version": 3,
        }

    return np.asarray(Everything())


def address_of(buffer: Any) -> int:
    """Where an object's buffer begins."""
    address: int = np.frombuffer(buffer, np.uint8).__array_interface__["data"][0]
    return address


@dataclass(slots=True)
class Located:
    """Samples: first byte and end of each, as addresses (int64)."""

    starts: Ints
    stops: Ints
    kept: list[Any] = field(default_factory=list)
    guards: list[tuple[Guard, int]] = field(default_factory=list)

    def is_right(self) -> bool:
        """Whether what has been copied from there until now was what the files hold."""
        return all(guard.generations[guard.file] == generation for guard, generation in self.guards)


class Addresses:
    """Addresses of the samples of one dataset's MDS shards, as far as they have been asked for."""

    def __init__(self, tables: DatasetTables) -> None:
        self._tables = tables
        # per shard the map's address, 0 where it is not known or may change; the map must live as long as its address
        self._bases = np.zeros(len(tables.shards), np.int64)
        self._maps: dict[int, Any] = {}
        # per shard n + 1 offsets one after the other; pages of it that are never filled take no memory
        listed = tables.samples <= LISTED_SAMPLES
        self._offsets = np.zeros(tables.samples + len(tables.shards), np.uint32) if listed else None

    def forget(self, number: int) -> None:
        """A shard is closed."""
        self._bases[number] = 0
        if number in self._maps:
            # answers given until now keep the old dict, and with it every map
            self._maps = {each: raw for each, raw in self._maps.items() if each != number}

    def locate(self, ids: Ints, opened: Opened, *, copied: bool = False) -> Located:
        """Where these samples are. `copied`: in copies of our own wherever the file may change under the reader.

        `opened(number)`: a shard's file, and its count and offsets (u32).
        """
        numbers = self._tables.find_shards(ids)
        maps = self._maps
        bases = self._bases[numbers]
        if self._offsets is not None and bases.all():
            rows = ids + numbers
            starts, stops = self._offsets[rows] + bases, self._offsets[rows + 1] + bases
            return Located(starts, stops, [maps, self._maps])
        found = Located(np.empty(len(ids), np.int64), np.empty(len(ids), np.int64))
        indices = ids - self._tables.first_sample[numbers]
        order = np.argsort(numbers, kind="stable")
        distinct, firsts = np.unique(numbers[order], return_index=True)
        for number, places in zip(distinct.tolist(), np.split(order, firsts[1:]), strict=True):
            file, words = opened(number)
            self._locate_in(number, file, words, indices[places], places, found, copied=copied)
        return found

    def _locate_in(
        self,
        number: int,
        file: ShardFile,
        words: memoryview,
        indices: Ints,
        places: Ints,
        found: Located,
        *,
        copied: bool,
    ) -> None:
        offsets = np.frombuffer(words, "<u4")[1:]
        starts, stops = offsets[indices].astype(np.int64), offsets[indices + 1].astype(np.int64)
        raw, guard = file.raw, file.guard
        if raw is None or (guard is not None and (copied or guard.generations[guard.file] != guard.whole[0])):
            raw, starts, stops = _copies(file, starts, stops)
        elif guard is not None:
            found.guards.append((guard, guard.whole[0]))
        else:
            self._remember(number, raw, offsets)
        base = self._bases[number] or address_of(raw)
        found.kept.append(raw)
        found.starts[places], found.stops[places] = starts + base, stops + base

    def _remember(self, number: int, raw: Any, offsets: NDArray[np.uint32]) -> None:
        if self._offsets is not None and not self._bases[number]:
            row = int(self._tables.first_sample[number]) + number
            self._offsets[row : row + len(offsets)] = offsets
            self._bases[number] = address_of(raw)
            self._maps[number] = raw


def _copies(file: ShardFile, starts: Ints, stops: Ints) -> tuple[bytes, Ints, Ints]:
    """Samples one after the other in memory of our own, and where each is there."""

    def copied(data: Any, start: int, stop: int) -> Any:
        return bytes(memoryview(data)[start:stop])

    pieces: list[Any] = [
        file.decode(copied, start, stop) for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)
    ]
    ends = np.cumsum(stops - starts)
    return b"".join(pieces), ends - (stops - starts), ends
