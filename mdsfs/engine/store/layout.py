"""Where the parts of a dataset lie: in a cache of our own, or in a folder where complete shards stand at their names.

Pure: paths from names and numbers. Who moves a file from one place to the other is the store.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["PARTIAL", "InternalLayout", "Layout", "PublishedLayout"]

PARTIAL = ".partial"


class Layout(Protocol):
    """Places of one dataset's files."""

    @property
    def folder(self) -> Path:
        """The folder of tables, state, residency table, original index and unfinished files."""

    @property
    def index(self) -> Path:
        """The index as shown."""

    def partial(self, n: int) -> Path:
        """The sparse file of file `n`."""

    def final(self, name: str) -> Path | None:
        """Where a complete file of this name stands; None where complete files stay what they are."""


@dataclass(frozen=True, slots=True)
class InternalLayout:
    """All of it in one folder of the cache; nothing has a name that other programs know."""

    folder: Path

    @property
    def index(self) -> Path:
        """The index as shown."""
        return self.folder / "index.json"

    def partial(self, n: int) -> Path:
        """The sparse file of file `n`."""
        return self.folder / f"files/{n}"

    def final(self, name: str) -> Path | None:
        """Complete files stay where they are."""
        return None


@dataclass(frozen=True, slots=True)
class PublishedLayout:
    """`publish` is a valid local dataset as far as it is complete; everything else is in `publish/.partial`."""

    publish: Path

    @property
    def folder(self) -> Path:
        """The folder of what no other program should read."""
        return self.publish / PARTIAL

    @property
    def index(self) -> Path:
        """The index as shown, where readers look for it."""
        return self.publish / "index.json"

    def partial(self, n: int) -> Path:
        """The sparse file of file `n`."""
        return self.folder / f"files/{n}"

    def final(self, name: str) -> Path | None:
        """The shard's own name below the published folder; names were checked when the index was parsed."""
        return self.publish / name
