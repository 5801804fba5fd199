"""One shard as a function from index to sample, and a dataset's shards as a function from id to sample.

Owns the offsets and which shards are open; where the bytes come from, and whether they may vanish, is the business of
`sources`.
"""

from __future__ import annotations

import mmap
import os
import resource
import weakref
from bisect import bisect_right
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from streaming.addresses import Addresses, Located
from streaming.compiled import compile_samples
from streaming.errors import ShardFormatError
from streaming.mds.encodings import UNSAFE
from streaming.mds.layout import head_size, read_offsets, sample_decoder
from streaming.mds.shards import Schema
from streaming.mds.split import line_decoder, read_line_offsets
from streaming.views import as_stored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from streaming.mds.tables import DatasetTables

    Decoder = Callable[..., dict[str, Any]]
    Sample = Callable[[int], dict[str, Any]]

__all__ = ["Folder", "Guard", "ShardFile", "Shards", "most_open", "schema_from_json"]

# Up to here a list of first samples is worth its memory: bisecting it is twice as fast as bisecting the table.
LISTED_SHARDS = 1 << 16


class Guard(Protocol):
    """Says whether bytes copied from a map were right: while `generations[file]` is `whole[0]`, all of them are."""

    generations: Any
    file: int
    whole: list[int]


class ShardFile(Protocol):
    """The raw bytes of one file of a dataset.

    `raw` is a map or bytes, None where they can't be had without asking; `guard` is None where they stay as they are.
    Both may be others after `decode`. `memory`: private memory that the file takes as long as it is open.
    """

    name: str
    size: int
    memory: int

    @property
    def raw(self) -> Any: ...

    @property
    def guard(self) -> Guard | None: ...

    def head(self, stop: int) -> memoryview:
        """The first bytes of the file, in memory that stays as it is."""
        ...

    def decode(self, decoder: Decoder, start: int, stop: int) -> dict[str, Any]:
        """What the decoder makes of these bytes, which are right and its own."""
        ...

    def pin(self) -> bool:
        """Have the file stay as it is, for views of it; whether it does. Asked only where there is a guard."""
        ...

    def unpin(self) -> None:
        """The end of that, but for what views hold."""
        ...


class Folder(Protocol):
    """A dataset's files."""

    tables: DatasetTables
    fetches: bool  # whether files come from somewhere else, and can be asked for ahead of time
    pinnable: int  # bytes of files that may be kept from being taken away, for views of them

    def open(self, file: int) -> ShardFile:
        """The raw bytes of a row of the file table."""
        ...

    def prefetch(self, files: Sequence[int]) -> None:
        """Have files fetched, in this order, as far as there is room to spare; returns at once."""
        ...

    def entering(self, file: int) -> None:
        """The reader turns to this file; what it reads next may be guessed from that."""
        ...


def schema_from_json(entry: dict[str, Any]) -> Schema:
    """The schema that a dataset's tables keep as a JSON object."""
    if entry["format"] == "json":
        columns = entry["columns"]
        return Schema("json", tuple(columns), tuple(columns.values()), newline=entry["newline"])
    sizes = entry.get("column_sizes")
    return Schema(
        entry["format"],
        tuple(entry["column_names"]),
        tuple(entry["column_encodings"]),
        None if sizes is None else tuple(sizes),
        newline=entry.get("newline"),
        separator=entry.get("separator"),
    )


# Decompressed shards that are kept in memory.
MEMORY = 256 << 20

# Every map keeps a descriptor; half of the process's are the program's. Shared by all datasets of the process.
_opened: deque[tuple[weakref.ref[Shards], int]] = deque()


# Those that have pinned shards.
_pinning: weakref.WeakSet[Shards] = weakref.WeakSet()


def _forked() -> None:
    """In a forked child: its parent's pins would stay until it ends. It pins what it reads itself."""
    for shards in list(_pinning):
        shards.unpin()


os.register_at_fork(after_in_child=_forked)


def most_open() -> int:
    """Shards that a process keeps open at most."""
    return max(16, min(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2, 4096))


class _Shard:
    """An open shard."""

    def __init__(
        self, file: ShardFile, words: memoryview, first: int, schema: Schema, decoder: Decoder, views: bool
    ) -> None:
        self.file = file
        self.first = first  # the id of its first sample
        self.words = words  # count and offsets; u32, little-endian as every machine that this runs on
        self._schema = schema
        self._decoder = decoder
        self._views = views
        self._rebound: Callable[[Sample, bool], None] | None = None

    def bind(self, rebound: Callable[[Sample, bool], None] | None = None) -> Sample:
        """The function from id to sample, as fast as this file allows; `rebound` gets it anew when that changes."""
        if rebound is not None:
            self._rebound = rebound
        raw, guard = self.file.raw, self.file.guard
        if self._schema.format != "mds" or raw is None or (guard is not None and self._views):
            return self.slow
        bind = compile_samples(self._schema, self._views, guard is not None)
        more = () if guard is None else (guard.generations, guard.file, guard.whole)
        return bind(raw, memoryview(raw), self.words, self.slow, self.first, *more)

    def slow(self, sample_id: int) -> dict[str, Any]:
        """The same by way of the file's own care."""
        file = self.file
        is_mds = self._schema.format == "mds"
        if self._views and is_mds and self._rebound is not None and file.guard is not None and file.pin():
            sample = self.bind()
            self._rebound(sample, True)
            return sample(sample_id)
        found: dict[str, Any] = self._by_file(sample_id, self._decoder)
        return found

    def stored(self, sample_id: int) -> bytes:
        """A sample's bytes."""
        found: bytes = self._by_file(sample_id, lambda buffer, start, stop: bytes(buffer[start:stop]))
        return found

    def _by_file(self, sample_id: int, decoder: Callable[..., Any]) -> Any:
        file, raw, index = self.file, self.file.raw, sample_id - self.first
        try:
            return file.decode(decoder, self.words[index + 1], self.words[index + 2])
        except ShardFormatError as error:
            raise ShardFormatError(f"{file.name}, sample {index}: {error}") from error
        finally:
            if file.raw is not raw and self._rebound is not None:
                self._rebound(self.bind(), False)


class Shards:
    """Samples of a folder by id. Shards are opened on first use; the ones opened longest ago are closed again.

    Not shared between processes: each opens its own.
    """

    def __init__(
        self, folder: Folder, *, views: bool = False, stored: bool = False, allow_unsafe_types: bool = True
    ) -> None:
        """`views`: give values as views where that is possible; `stored`: those of varying size undecoded."""
        self.folder = folder
        self._stored = stored
        self._pins: dict[int, int] = {}  # shard to bytes, oldest first
        self.tables = folder.tables
        self.samples = self.tables.samples
        self._views = views
        self._unsafe = allow_unsafe_types
        self._decoders: dict[int, tuple[Schema, Decoder]] = {}
        self._open: dict[int, Sample] = {}
        self._shards: dict[int, _Shard] = {}
        self._in_memory: dict[int, int] = {}  # shard to bytes
        self._addresses = Addresses(self.tables)

    def reader(self) -> Sample:
        """The function from id to sample, 0 ≤ id < samples. A closure: attributes would cost as much as the lookup."""
        first: Any = self.tables.first_sample
        first = first.tolist() if len(first) <= LISTED_SHARDS else first.data
        opened, enter = self._open, self._enter

        def read(sample_id: int) -> dict[str, Any]:
            number = bisect_right(first, sample_id) - 1
            return (opened.get(number) or enter(number))(sample_id)

        return read

    def _enter(self, number: int) -> Sample:
        sample = self._open_shard(number)
        _opened.append((weakref.ref(self), number))
        most = most_open()
        while len(_opened) > most:
            owner, its = _opened.popleft()
            if (shards := owner()) is not None:
                shards.close(its)
        self._open[number] = sample
        return sample

    def close(self, number: int) -> None:
        """Let go of a shard's map."""
        self._open.pop(number, None)
        self._shards.pop(number, None)
        self._in_memory.pop(number, None)
        self._pins.pop(number, None)
        self._addresses.forget(number)

    def maps(self) -> Iterator[mmap.mmap]:
        """The maps of the shards that are open."""
        return (raw for shard in list(self._shards.values()) if isinstance(raw := shard.file.raw, mmap.mmap))

    def schema(self, number: int) -> Schema:
        """What a shard's samples are made of."""
        return self._decoder(int(self.tables.shards["schema"][number]))[0]

    def check(self) -> None:
        """Raises ValueError where samples can't be decoded, or only by running what they say."""
        for number, schema in enumerate(map(schema_from_json, self.tables.schemas)):
            for name, encoding in zip(schema.column_names, schema.column_encodings, strict=True):
                if encoding in UNSAFE and not self._unsafe:
                    raise ValueError(
                        f"Column {name} contains an unsafe type: {encoding}. To proceed anyway, set "
                        "``allow_unsafe_types=True``."
                    )
            self._decoder(number)

    def sample(self, number: int, index: int) -> dict[str, Any]:
        """A sample by its place in a shard."""
        return (self._open.get(number) or self._enter(number))(int(self.tables.first_sample[number]) + index)

    def stored_sample(self, number: int, index: int) -> bytes:
        """The same as it is stored."""
        self._opened(number)
        return self._shards[number].stored(int(self.tables.first_sample[number]) + index)

    def by_schema(self, ids: NDArray[np.int64]) -> Iterator[tuple[Schema, Any]]:
        """(schema, index of `ids`) of samples that are made of the same."""
        if len(self.tables.schemas) == 1:
            yield self._decoder(0)[0], slice(None)
            return
        numbers = self.tables.shards["schema"][self.tables.find_shards(ids)]
        for number in np.unique(numbers).tolist():
            yield self._decoder(number)[0], np.flatnonzero(numbers == number)

    def locate(self, ids: NDArray[np.int64], *, copied: bool = False) -> Located:
        """Where these samples of MDS shards are in memory; see `Addresses.locate`."""
        return self._addresses.locate(ids, self._opened, copied=copied)

    def _opened(self, number: int) -> tuple[ShardFile, memoryview]:
        """A shard's file, and its count and offsets (u32)."""
        if number not in self._open:
            self._enter(number)
        shard = self._shards[number]
        return shard.file, shard.words

    def prefetch(self, numbers: Sequence[int]) -> None:
        """Have shards fetched, in this order."""
        self.folder.prefetch(self.tables.shards["file"][list(numbers)].tolist())

    def _open_shard(self, number: int) -> Sample:
        tables = self.tables
        schema, decoder = self._decoder(int(tables.shards["schema"][number]))
        samples, row = int(tables.shards["samples"][number]), int(tables.shards["file"][number])
        self.folder.entering(row)
        file = self.folder.open(row)
        meta = file if schema.format == "mds" else self.folder.open(row + 1)
        self._remember(number, file.memory + (meta.memory if meta is not file else 0))
        head = head_size(samples)
        if meta.size < head:
            raise ShardFormatError(
                f"{meta.name}: expected at least {head} bytes for {samples} samples, got {meta.size}"
            )
        words = meta.head(head)
        try:
            (read_offsets if meta is file else read_line_offsets)(words, samples, file.size)
        except ShardFormatError as error:
            raise ShardFormatError(f"{meta.name}: {error}") from None
        me = weakref.ref(self)  # or maps would live until the next garbage collection

        def rebound(sample: Sample, pinned: bool) -> None:
            if (shards := me()) is not None and number in shards._open:
                shards._open[number] = sample
                if pinned:
                    shards._have_pinned(number, file.size)

        shard = self._shards[number] = _Shard(
            file, words.cast("I"), int(tables.first_sample[number]), schema, decoder, self._views
        )
        return shard.bind(rebound)

    def _have_pinned(self, number: int, size: int) -> None:
        """Count a shard that was pinned, and let go of the ones pinned longest ago beyond what is allowed."""
        _pinning.add(self)
        self._pins[number] = size
        while sum(self._pins.values()) > self.folder.pinnable:
            self._unpin(next(iter(self._pins)))

    def unpin(self) -> None:
        """Let go of every shard that was pinned; what views hold, they go on holding."""
        for number in list(self._pins):
            self._unpin(number)

    def _unpin(self, number: int) -> None:
        del self._pins[number]
        self._addresses.forget(number)
        shard = self._shards[number]
        shard.file.unpin()
        self._open[number] = shard.bind()

    def _remember(self, number: int, memory: int) -> None:
        """Count a shard that takes memory, and close the oldest ones beyond what is allowed."""
        if memory:
            self._in_memory[number] = memory
            while len(self._in_memory) > 1 and sum(self._in_memory.values()) > MEMORY:
                self.close(next(iter(self._in_memory)))

    def _decoder(self, number: int) -> tuple[Schema, Decoder]:
        found = self._decoders.get(number)
        if found is None:
            schema = schema_from_json(self.tables.schemas[number])
            if schema.format == "mds":
                schema = as_stored(schema) if self._stored else schema
                decoder = sample_decoder(schema, views=self._views, allow_unsafe_types=self._unsafe)
            else:
                decoder = line_decoder(schema)
            found = self._decoders[number] = schema, decoder
        return found
