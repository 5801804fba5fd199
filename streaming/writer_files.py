"""The folder that a writer fills: how it is claimed, and how shards and index get there.

Shards may stand there half written when a writer dies. The index may not: it appears under its name in one step, after
everything that it names is on the disk, so that whoever finds an index finds a whole dataset.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from streaming.mds.index import INDEX_NAME

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ShardFolder"]

# Gathers small samples into writes that are worth their call; larger ones are written without a copy.
_BUFFER = 128 << 10


class ShardFolder:
    """One local folder, claimed for one dataset."""

    def __init__(self, path: str | os.PathLike[str] | None, *, exist_ok: bool = False) -> None:
        """Makes the folder, a temporary one for None.

        Raises FileExistsError when it has something in it, unless `exist_ok`: then the dataset that is there is removed
        (its index first), and nothing else.
        """
        self.is_temporary = path is None
        self.path = Path(tempfile.mkdtemp(prefix="mds-")) if path is None else Path(path)
        self._unsynced: list[Path] = []
        if path is None:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        if any(self.path.iterdir()):
            if not exist_ok:
                raise FileExistsError(f"Directory is not empty: {self.path}: choose another or pass exist_ok=True")
            self._remove_dataset()

    def _remove_dataset(self) -> None:
        (self.path / INDEX_NAME).unlink(missing_ok=True)
        for shard in self.path.glob("shard.*"):
            if shard.is_file():
                shard.unlink()

    def write(self, name: str, pieces: Sequence[bytes]) -> Path:
        """A shard's file, in place, of pieces one after the other."""
        path = self.path / name
        with path.open("wb", buffering=_BUFFER) as file:
            file.writelines(pieces)
        self._unsynced.append(path)
        return path

    def write_index(self, data: bytes) -> Path:
        """The index, last: the shards are on the disk before its name appears, and it is whole when it does."""
        for path in self._unsynced:
            _sync(path)
        self._unsynced.clear()
        path = self.path / INDEX_NAME
        fresh = self.path / f".{INDEX_NAME}.{os.getpid()}"
        try:
            with fresh.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            fresh.rename(path)
        finally:
            fresh.unlink(missing_ok=True)
        _sync(self.path)
        return path

    def forget(self, path: Path) -> None:
        """Removes a file that has been uploaded."""
        path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Removes the dataset, and the folder if nothing else is in it."""
        self._remove_dataset()
        if not any(self.path.iterdir()):
            self.path.rmdir()


def _sync(path: Path) -> None:
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:  # uploaded and removed
        return
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
