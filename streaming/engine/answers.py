"""What an engine answers, as values. Descriptors in them belong to whoever asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from streaming.errors import ProtocolError

from . import messages

__all__ = [
    "Attached",
    "DirectBytes",
    "Hinted",
    "HintedOrder",
    "OpenedDataset",
    "OpenedFile",
    "Source",
    "Wanted",
    "hinted_order",
]


@dataclass(frozen=True, slots=True)
class OpenedDataset:
    """One dataset of a source, as `open` answers."""

    dataset: int
    prefix: str
    kind: str
    files: int
    shown_size: int
    url: str
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Source:
    """What `open` found."""

    datasets: tuple[OpenedDataset, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Attached:
    """Descriptors of a dataset's tables, residency table and shown index (None for objects); the caller closes them."""

    tables: int
    residency: int
    index: int | None

    def close(self) -> None:
        """Close all of them."""
        messages.close_fds([fd for fd in (self.tables, self.residency, self.index) if fd is not None])


@dataclass(frozen=True, slots=True)
class OpenedFile:
    """A cache file (or, when direct, the source's own file); the caller closes the descriptor."""

    fd: int
    size: int
    direct: bool


@dataclass(frozen=True, slots=True)
class DirectBytes:
    """A range that had no room in the cache: its bytes are all that the memfd holds, from its start."""

    file: int
    offset: int
    length: int
    fd: int


@dataclass(frozen=True, slots=True)
class HintedOrder:
    """The order of an epoch: a sealed memfd of int64 in this shape; the caller closes it."""

    fd: int
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Hinted:
    """An answered `hint`: the job's number on this connection, whether the engine fetches ahead by it, and the order of
    the epoch if it is there already."""

    job: int
    planned: bool
    order: HintedOrder | None


@dataclass(frozen=True, slots=True)
class Wanted:
    """An answered `want`: what is not in `direct` is resident and held until `done`."""

    id: int
    direct: tuple[DirectBytes, ...]

    def close(self) -> None:
        """Close the memfds."""
        messages.close_fds(list({each.fd for each in self.direct}))


def hinted_order(reply: dict[str, Any], fds: list[int]) -> HintedOrder | None:
    """The order that came with a reply, None where none did. Raises ProtocolError."""
    if not fds:
        return None
    try:
        return HintedOrder(fds[0], tuple(int(side) for side in reply["shape"]))
    except (KeyError, TypeError, ValueError) as error:
        messages.close_fds(fds)
        raise ProtocolError("the engine's answer to a hint makes no sense") from error
