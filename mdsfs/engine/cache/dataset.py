"""One dataset as the engine has it in memory: its tables, its residency table, its folder, and what is going on in its
files.

Everything here is touched by the engine's one thread only. A file has a `FileWork` only while something happens to it,
or when something must be remembered of it until the engine ends (that it is broken).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import repeat
from typing import TYPE_CHECKING, Any

import numpy as np

from streaming.engine.residency import BLOCK, ResidencyWriter

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt
    import trio

    from streaming.errors import StreamingError
    from streaming.mds.tables import DatasetTables

    from ..filling.flights import Flight, Waiter
    from ..store.folder import DatasetFolder
    from .ledger import Chunk

__all__ = ["Dataset", "FileWork", "Run"]

Run = tuple[int, int]  # first block, number of blocks

# Blocks of a cell. Small, since what is held of a sample keeps its neighbours on the same cell from being evicted.
CELL = 8


class FileWork:
    """What happens to one file, and what has."""

    __slots__ = ("busy", "changing", "checking", "error", "flights", "outside", "refused", "waiters")

    def __init__(self) -> None:
        self.flights: list[Flight] = []
        self.waiters: list[Waiter] = []
        self.busy: dict[Chunk, trio.Event] = {}
        """Cells of which blocks are being punched: nothing may be fetched into them before the event."""
        self.changing = 0
        """Takings-away in progress: the generation is odd as long as there are any."""
        self.checking: trio.Event | None = None
        """While what an earlier engine left of this file is being looked at; set at the end."""
        self.refused = 0
        """Fills of which the bytes were wrong."""
        self.error: StreamingError | None = None
        """Why this file is not fetched again before the engine is restarted."""
        self.outside = False
        """The disk took no cache file when a client asked for it: nothing is cached of it before a restart."""

    def __repr__(self) -> str:
        return f"FileWork({len(self.flights)} flights, {len(self.waiters)} waiters, error={self.error})"


@dataclass(eq=False, slots=True)
class Dataset:
    """A dataset folder, loaded. `number` is the engine's own; connections number theirs themselves."""

    number: int
    folder: DatasetFolder
    tables: DatasetTables
    residency: ResidencyWriter
    chunk: int
    """Blocks per chunk of a file that need not go as a whole."""
    url: str
    """Where the keys of the tables are relative to."""
    remote_options: Any = None
    """How to reach the store; None until a client has opened the dataset in this engine's life."""
    users: int = 0
    removed: trio.Event | None = None
    """While its folder is being removed; set when that has ended."""
    kept: bool = False
    """The folder could not be removed: a reader of an earlier engine has a pin in it."""
    shard_level: bool = False
    """Nothing below shard level is served: fills publish at their end."""
    whole_only: bool = False
    """A shard's compressed form was found to have no frames: the others have none either."""
    unrecorded: dict[int, str] = field(default_factory=dict)
    """Versions that objects are pinned to and that the disk would not take."""
    checked: bytearray = field(init=False)
    """Per file: what an earlier engine left of it has been looked at, and is as it should be."""
    work: dict[int, FileWork] = field(default_factory=dict)

    shown_blocks: int = field(init=False)
    """Blocks of all files as shown."""

    def __post_init__(self) -> None:
        self.checked = bytearray(len(self.tables.files))
        self.shown_blocks = int((-(-self.tables.files["size"] // BLOCK)).sum())

    def __repr__(self) -> str:
        return f"Dataset({self.number}, {self.url}, {len(self.tables.files)} files, {self.users} users)"

    def size(self, file: int) -> int:
        """Bytes of a file as shown."""
        return int(self.tables.files["size"][file])

    def etag(self, file: int) -> str | None:
        """The version that the object is pinned to; None before the first answer about it."""
        return self.tables.etag(file) or self.folder.state.get(file).etag or self.unrecorded.get(file)

    def blocks(self, file: int) -> int:
        """Blocks of a file as shown."""
        return -(-self.size(file) // BLOCK)

    def working(self, file: int) -> FileWork:
        """The file's record, made where there is none."""
        work = self.work.get(file)
        if work is None:
            work = self.work[file] = FileWork()
        return work

    def rest(self, file: int) -> None:
        """Forget a record that says nothing any more."""
        work = self.work.get(file)
        if work is None or work.checking is not None or work.error is not None or work.outside:
            return
        if not (work.flights or work.waiters or work.busy or work.changing or work.refused):
            del self.work[file]

    def is_whole(self, file: int) -> bool:
        """Whether the file can only be fetched whole, as far as is known: then it also goes as a whole."""
        compression = self.tables.compression(file)
        return self.shard_level or (compression is not None and (self.whole_only or not compression.startswith("zstd")))

    def cells(self, file: int, first: int, count: int) -> tuple[Chunk, ...]:
        """The cells that a run of blocks lies on: what holds and punches are counted by.

        Unlike chunks they never change: a hold may be older than the knowledge that its file goes as a whole.
        """
        if count <= 0:
            return ()
        indexes = range(first // CELL, (first + count - 1) // CELL + 1)
        return tuple(zip(repeat(self.number), repeat(file), indexes, strict=False))

    def grain(self, file: int) -> int:
        """Blocks per chunk of this file: what eviction takes at once."""
        return max(self.blocks(file), 1) if self.is_whole(file) else self.chunk

    def chunks(self, file: int, first: int, count: int) -> Iterator[Chunk]:
        """The chunks that a run of blocks lies on."""
        if count <= 0:
            return
        grain = self.grain(file)
        for index in range(first // grain, (first + count - 1) // grain + 1):
            yield self.number, file, index

    def chunk_run(self, file: int, index: int) -> Run:
        """The blocks of a chunk; none for one that the file does not have, or has no longer."""
        grain = self.grain(file)
        return index * grain, max(0, min(grain, self.blocks(file) - index * grain))

    def bitmap_pages(self) -> npt.NDArray[np.int64]:
        """Per file: pages of the residency table that its bitmaps lie on."""
        at = 3 * self.tables.bitmap_at
        return np.asarray(np.maximum(1, -(-at[1:] // BLOCK) - at[:-1] // BLOCK), np.int64)

    def missing(self, file: int, first: int, count: int) -> list[Run]:
        """Blocks among these that are not there as a whole, as runs."""
        return list(self.residency.runs(file, first, count, present=False))

    def vacant(self, file: int, first: int, count: int) -> list[Run]:
        """Blocks among these of which nothing is there, as runs."""
        return list(self.residency.runs(file, first, count, present=False, parts=True))

    def stretches(self, file: int) -> list[Run]:
        """Runs of blocks that are there as a whole, each with the block before and behind, where a part may be."""
        blocks = self.blocks(file)
        return [
            (max(first - 1, 0), min(first + count + 1, blocks) - max(first - 1, 0))
            for first, count in self.residency.runs(file, 0, blocks, present=True)
        ]

    def is_here(self, file: int, start: int, stop: int, *, sample: bool) -> bool:
        """Whether a range of bytes is there; `sample`: it is one sample, exactly."""
        residency = self.residency
        return (residency.has_sample if sample else residency.is_resident)(file, start, stop - start)

    def is_resident(self, file: int, offset: int, length: int) -> bool:
        """Whether a byte range is there."""
        return self.residency.is_resident(file, offset, length)

    def is_complete(self, file: int) -> bool:
        """Whether all of a file is there."""
        return self.residency.is_resident(file, 0, self.size(file))

    # ---- taking blocks away: odd from the first begin to the last end ------------------------------------------------

    def begin_change(self, file: int) -> None:
        """Make the generation odd, or keep it so."""
        work = self.working(file)
        if not work.changing:
            self.residency.begin(file)  # on a disk that has turned read-only this fails, and nothing has begun
        work.changing += 1

    def end_change(self, file: int) -> None:
        """Make the generation even again when nobody else is changing the file."""
        work = self.working(file)
        work.changing -= 1
        if not work.changing:
            self.residency.end(file)
