"""Which chunk goes first when room is needed. Pure. `Policy` is the seam; `LeastRecentlyUsed` stands behind it.

A policy knows chunks and when they were used, nothing of blocks, holds or disks: the cache walks `victims` from the
best one on, leaves out what is held, and says `forget` for what it takes. What a plan will know (the next use of every
chunk) enters here as another `Policy`, for which `incoming` says what the room is wanted for: it may stop offering at
chunks needed sooner than that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .ledger import Chunk, FileKey

__all__ = ["LeastRecentlyUsed", "Policy", "Victim"]

# A chunk, or (chunk None) all of a file that has been resident since before anybody here used it.
Victim = tuple[int, int, int | None]


class Policy(Protocol):
    """Obligations: `victims` yields every chunk and file that was touched or adopted and not forgotten, each once, and
    changes nothing; its order may be stale after the next call of any other method."""

    def adopt(self, dataset: int, files: Iterable[int]) -> None:
        """Files resident from an earlier life of the engine, or of a dataset that nobody has open any more."""
        ...

    def touch(self, chunk: Chunk) -> None:
        """The chunk was read, or filled for somebody who will read it."""
        ...

    def forget(self, chunk: Chunk) -> None:
        """Nothing of the chunk is resident any more."""
        ...

    def forget_file(self, key: FileKey) -> None:
        """Nothing of an adopted file is resident any more; its chunks that were touched meanwhile are not concerned."""
        ...

    def victims(self, incoming: Chunk | None = None) -> Iterator[Victim]:
        """What may go, best first, to make room for `incoming`."""
        ...


class LeastRecentlyUsed:
    """Adopted files first, in order of adoption; then chunks by their last use."""

    def __init__(self) -> None:
        # dicts keep insertion order: the first key is the one used longest ago
        self._adopted: dict[FileKey, None] = {}
        self._chunks: dict[Chunk, None] = {}

    def __repr__(self) -> str:
        return f"LeastRecentlyUsed({len(self._adopted)} adopted files, {len(self._chunks)} chunks)"

    def adopt(self, dataset: int, files: Iterable[int]) -> None:
        """See `Policy`."""
        self._adopted.update(((dataset, file), None) for file in files)

    def touch(self, chunk: Chunk) -> None:
        """See `Policy`."""
        self._chunks.pop(chunk, None)
        self._chunks[chunk] = None

    def forget(self, chunk: Chunk) -> None:
        """See `Policy`."""
        self._chunks.pop(chunk, None)

    def forget_file(self, key: FileKey) -> None:
        """See `Policy`."""
        self._adopted.pop(key, None)

    def is_recent(self, chunk: Chunk) -> bool:
        """Whether the chunk has been used since its file was adopted."""
        return chunk in self._chunks

    def victims(self, incoming: Chunk | None = None) -> Iterator[Victim]:
        """See `Policy`."""
        del incoming  # recency alone decides here
        for dataset, file in self._adopted:
            yield dataset, file, None
        yield from self._chunks
