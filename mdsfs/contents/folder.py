"""What is in one dataset's folder of a cache, file by file: as its tables, residency table and state table say.

They are looked at while an engine may be changing them, so every answer is true at one instant only.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np

from mdsfs.engine.store.state import file_state, kept_in, map_records
from streaming.engine.residency import BLOCK, ResidencyWriter
from streaming.mds.tables import load_tables

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from streaming.mds.tables import DatasetTables

__all__ = ["Contents", "FileRow", "Folder"]


@dataclass(frozen=True, slots=True)
class Folder:
    """One dataset folder of a cache. `users` is how many have it open, None where no engine runs."""

    name: str
    kind: str
    url: str
    source: str
    identity: Mapping[str, Any]
    users: int | None
    pinned_files: int
    pinned_bytes: int


@dataclass(frozen=True, slots=True)
class FileRow:
    """One file. `state` is absent, partial, complete or failed; `level` how far what is there was verified."""

    number: int
    name: str
    size: int
    stored: int
    resident_bytes: int
    state: str
    level: str
    pinned: bool


class Contents:
    """The files of a folder."""

    def __init__(self, fds: Sequence[int], failed: Iterable[int] = ()) -> None:
        """`fds`: tables, residency table, state table, which are closed here; `failed`: files that are broken."""
        tables, residency, state = fds
        try:
            self.tables: DatasetTables = load_tables(memoryview(mmap.mmap(tables, 0, prot=mmap.PROT_READ)))
            self._records = map_records(state, len(self.tables.files))
            # the writer's side for its counting; nothing is written, which this descriptor would not allow anyway
            self._residency = ResidencyWriter(
                os.dup(residency), self.tables.bitmap_at, np.ascontiguousarray(self.tables.files["size"])
            )
        finally:
            for fd in fds:
                os.close(fd)
        self.blocks: NDArray[np.int64] = self._residency.resident_blocks()
        self._failed = frozenset(failed)

    def close(self) -> None:
        """Let go of the residency table."""
        self._residency.close()

    def generation(self, number: int) -> int:
        """The file's generation at this instant: odd while blocks are being taken away."""
        return self._residency.generation(number)

    def is_complete(self, number: int) -> bool:
        """Whether all of the file is there at this instant."""
        return self._residency.is_resident(number, 0, int(self.tables.files["size"][number]))

    def hashes(self, number: int) -> dict[str, str]:
        """The hashes that the file as shown must have: the index's, else our own of the first fill, else none."""
        own = file_state(self._records[number]).own_hash
        return self.tables.hashes(number) or ({own.partition(":")[0]: own.partition(":")[2]} if own else {})

    def row(self, number: int) -> FileRow:
        """One file, as it was when this was opened."""
        size, blocks = int(self.tables.files["size"][number]), int(self.blocks[number])
        record = file_state(self._records[number])
        if number in self._failed:
            state = "failed"
        elif blocks * BLOCK >= size and self.is_complete(number):  # of a block that is there it may be a part
            state = "complete"
        else:
            state = "partial" if blocks else "absent"
        return FileRow(
            number,
            self.tables.name(number),
            size,
            int(self.tables.files["stored"][number]),
            min(blocks * BLOCK, size),
            state,
            record.level if blocks else "none",
            record.kept,
        )

    def touched(self) -> list[int]:
        """Files of which something is there, and those that are pinned."""
        return sorted({*np.flatnonzero(self.blocks).tolist(), *kept_in(self._records)})

    def matching(self, prefix: str, globs: Sequence[str]) -> list[int]:
        """Files of which the path, `prefix` before it, or the name alone, fits one of the patterns; all without any."""
        if not globs:
            return list(range(len(self.tables.files)))
        at = f"{prefix}/" if prefix else ""
        return [
            number
            for number, name in enumerate(self.tables.names())
            if any(fnmatchcase(at + name, glob) or fnmatchcase(name, glob) for glob in globs)
        ]
