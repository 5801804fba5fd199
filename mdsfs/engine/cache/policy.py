"""What goes first when room is needed. Pure. `Policy` is the seam; `LeastRecentlyUsed` stands behind it where nothing
is known of the future, and `planned.PlannedPolicy` in front of that where something is.

A policy knows chunks and blocks and when they were, or will be, used; nothing of holds or disks: the cache walks
`victims` from the best one on, leaves out what is held, and says what has come and gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from .dataset import Dataset, Run
    from .ledger import Chunk, FileKey

__all__ = ["ANYTHING", "Arrival", "Change", "Incoming", "LeastRecentlyUsed", "Policy", "Victim"]


class Incoming(NamedTuple):
    """What room is wanted for. `distance`: what is needed sooner must stay; -1 where anything may go, for now."""

    distance: int = -1


ANYTHING = Incoming()


class Victim(NamedTuple):
    """A chunk; or with `run` these blocks; or with neither all of a file that nobody here has used yet."""

    dataset: int
    file: int
    chunk: int | None
    run: Run | None = None


Change = tuple["Dataset", int, int, int]
"""Blocks of a file that have come or gone: dataset, file, first block, number of blocks."""


class Arrival(NamedTuple):
    """Blocks of a file of which the data is on the disk, see `ResidencyWriter.set_blocks`."""

    dataset: Dataset
    file: int
    first: int
    blocks: int
    back: bool = False
    """The first one is there only from the last border of samples in it on."""
    front: bool = False
    """The last one is there only up to the first border of samples in it."""


class Policy(Protocol):
    """Obligations: `victims` changes nothing that anybody can see; its order may be stale after the next call of any
    other method; it yields everything that was touched or adopted and not forgotten, except what must stay for
    `incoming`. It may yield some blocks more than once."""

    def adopt(self, dataset: int, files: Iterable[int]) -> None:
        """Files resident from an earlier life of the engine, or of a dataset that nobody has open any more."""
        ...

    def touch(self, chunk: Chunk) -> None:
        """The chunk was read, or filled for somebody who will read it."""
        ...

    def arrived(self, runs: Sequence[Change]) -> None:
        """These blocks are resident, the first and the last one maybe in part."""
        ...

    def gone(self, runs: Sequence[Change]) -> None:
        """These blocks are not resident any more."""
        ...

    def forget(self, chunk: Chunk) -> None:
        """Nothing of the chunk is resident any more."""
        ...

    def forget_file(self, key: FileKey) -> None:
        """Nothing of an adopted file is resident any more; its chunks that were touched meanwhile are not concerned."""
        ...

    def is_recent(self, chunk: Chunk) -> bool:
        """Whether the chunk has been used since its file was adopted."""
        ...

    def victims(self, incoming: Incoming = ANYTHING) -> Iterator[Victim]:
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

    def arrived(self, runs: Sequence[Change]) -> None:
        """See `Policy`: what arrives was touched as well."""

    def gone(self, runs: Sequence[Change]) -> None:
        """See `Policy`: chunks of which nothing is left are forgotten as well."""

    def forget(self, chunk: Chunk) -> None:
        """See `Policy`."""
        self._chunks.pop(chunk, None)

    def forget_file(self, key: FileKey) -> None:
        """See `Policy`."""
        self._adopted.pop(key, None)

    def is_recent(self, chunk: Chunk) -> bool:
        """See `Policy`."""
        return chunk in self._chunks

    def victims(self, incoming: Incoming = ANYTHING) -> Iterator[Victim]:
        """See `Policy`."""
        del incoming  # recency alone decides here
        for dataset, file in self._adopted:
            yield Victim(dataset, file, None)
        for dataset, file, index in self._chunks:
            yield Victim(dataset, file, index)

    def move(self, dataset: int, other: LeastRecentlyUsed) -> None:
        """All that is known of a dataset is the other one's from now on, in the same order."""
        for key in [key for key in self._adopted if key[0] == dataset]:
            del self._adopted[key]
            other._adopted[key] = None
        for chunk in [chunk for chunk in self._chunks if chunk[0] == dataset]:
            del self._chunks[chunk]
            other._chunks[chunk] = None
