"""Where a dataset's bytes come from, three ways behind one interface.

- `PlainFolder`: a folder on a local disk. Shards are mapped; compressed ones are decompressed into memory.
- `EngineFolder` (in `cached`): the cache of an engine, usually the one behind a mount.
- `MountedFolder`: a mount whose engine can't be reached from here. Files are read with pread: a read that fails is an
  OSError, where a mapping would die of SIGBUS.

A folder knows its tables and opens its files; each process opens its own (nothing here survives pickling).
"""

from __future__ import annotations

import errno
import mmap
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from streaming.errors import EngineError, ObjectMissingError, ShardCorruptError
from streaming.kept import LARGE, kept_tables
from streaming.mds.compression import decompress
from streaming.mds.hashing import new_hash
from streaming.mds.uniform import index_tables
from streaming.resident import SMALL, map_what_is_cached

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from streaming.mds.tables import DatasetTables
    from streaming.reader import Decoder, Folder, ShardFile

__all__ = ["MountedFolder", "PlainFolder", "check_hash_name", "map_file", "open_folder", "read_tables"]

ENGINE_ATTRIBUTE = "user.mdsfs.engine"
# As /proc/self/mounts names them.
FUSE_TYPES = ("fuse", "fuseblk")
MEMORY_TYPES = ("tmpfs", "ramfs")


def open_folder(path: Path, validate_hash: str | None = None) -> Folder:
    """The dataset in a local or mounted folder: directly from the cache where the mount's engine can be reached.

    `validate_hash`: have shards checked against this hash of the index when they are opened.
    """
    with suppress(OSError, ValueError, KeyError, EngineError):
        attribute = os.getxattr(path, ENGINE_ATTRIBUTE)
        from streaming.cached import Door, EngineFolder  # most folders have no engine, and need no socket

        return EngineFolder(Door.from_attribute(attribute, validate="shard" if validate_hash else None))
    tables = read_tables(path)
    check_hash_name(tables, validate_hash)
    kind = _filesystem(path)
    if kind in FUSE_TYPES:
        return MountedFolder(path, tables)
    return PlainFolder(path, tables, validate_hash, in_memory=kind in MEMORY_TYPES)


def check_hash_name(tables: DatasetTables, name: str | None) -> None:
    """Raises ValueError where the dataset was written without this hash."""
    if name and len(tables.files):
        known = {**tables.hashes(0, "raw"), **tables.hashes(0, "zip")}
        if name not in known:
            raise ValueError(
                f"Hash algorithm `{name}` chosen for data validation does not match with those provided during dataset "
                f"creation `{sorted(known)}`. Provide one of those."
            )


def read_tables(path: Path) -> DatasetTables:
    """The tables of a folder's own index.json."""
    index = path / "index.json"
    try:
        file = open(index, "rb")  # noqa: SIM115 - closed below
    except FileNotFoundError as error:
        raise ObjectMissingError(f"{index} does not exist: expected a folder with an MDS dataset") from error
    with file:

        def build() -> list[bytes | memoryview]:
            # a large one need not be in memory at once; a mapping of a mount that fails would be a SIGBUS
            mapped = size >= LARGE and _filesystem(path) not in FUSE_TYPES
            return index_tables(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) if mapped else file.read())

        found = os.fstat(file.fileno())
        size = found.st_size
        return kept_tables(found, build)


def _filesystem(path: Path) -> str:
    """The type of the filesystem that a path lies on, without a subtype: the longest mount point above it decides."""
    absolute, best, kind = os.path.realpath(path), "", ""
    with open("/proc/self/mounts") as mounts:
        for line in mounts:
            _, point, its_kind, *_ = line.split(" ")
            point = point.encode().decode("unicode_escape")  # spaces are written \040
            inside = absolute == point or absolute.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(best):
                best, kind = point, its_kind
    return kind.partition(".")[0]


def map_file(fd: int, size: int) -> Any:
    """What slices into bytes, and has a buffer."""
    return mmap.mmap(fd, size, prot=mmap.PROT_READ) if size else b""


# ---- a folder on a local disk ----------------------------------------------------------------------------------------


class _MappedFile:
    """Bytes that stay as they are: a mapped file, or memory."""

    __slots__ = ("_view", "guard", "memory", "name", "raw", "size")

    def __init__(self, name: str, raw: Any, memory: int = 0) -> None:
        self.name = name
        self.memory = memory
        self.size = len(raw)
        self.raw = raw
        self.guard = None
        self._view = memoryview(raw)

    def head(self, stop: int) -> memoryview:
        return self._view[:stop]

    def decode(self, decoder: Decoder, start: int, stop: int) -> dict[str, Any]:
        return decoder(self._view, start, stop)

    def pin(self) -> bool:
        """It stays as it is anyway."""
        return True

    def unpin(self) -> None:
        """Nothing was pinned."""


class PlainFolder:
    """Reads the raw file of a shard where it is there, else its compressed one."""

    fetches = False
    pinnable = 0

    def __init__(
        self, path: Path, tables: DatasetTables, validate_hash: str | None = None, *, in_memory: bool = False
    ) -> None:
        """`in_memory`: the folder has no disk."""
        self._path = path
        self.tables = tables
        self._in_memory = in_memory
        self._hash = validate_hash
        self._small = int(tables.files["size"].sum()) <= SMALL
        self._validated: set[int] = set()

    def open(self, file: int) -> ShardFile:
        """Raises ObjectMissingError, or ShardCorruptError where size or hash are not the index's."""
        name, size = self.tables.name(file), int(self.tables.files["size"][file])
        with suppress(FileNotFoundError):
            raw = self._mapped(self._path / name, size)
            self._validate(file, "raw", self._path / name, raw)
            return _MappedFile(name, raw)
        compression = self.tables.compression(file)
        if compression is None:
            raise ObjectMissingError(f"{self._path / name} does not exist, although index.json names it")
        stored = self._path / self.tables.key(file)
        try:
            data = self._mapped(stored, int(self.tables.files["stored"][file]))
        except FileNotFoundError as error:
            raise ObjectMissingError(
                f"neither {self._path / name} nor {stored} exists, index.json names both"
            ) from error
        self._validate(file, "zip", stored, data)
        try:
            return _MappedFile(name, bytes(decompress(compression, memoryview(data), size)), memory=size)
        except ShardCorruptError as error:
            raise ShardCorruptError(f"{stored}: {error}") from error

    def _validate(self, file: int, form: str, path: Path, data: Any) -> None:
        """Once in a process: a mapped file that changes afterwards is not ours to notice."""
        if self._hash is None or file in self._validated:
            return
        expected = self.tables.hashes(file, form).get(self._hash)
        found = new_hash(self._hash)
        found.update(data)
        if expected is not None and found.hexdigest() != expected:
            raise ShardCorruptError(f"Checksum failure: {path}: expected {self._hash} {expected}, remove it")
        self._validated.add(file)

    def prefetch(self, files: Sequence[int]) -> None:
        """Nothing to fetch."""

    def entering(self, file: int) -> None:
        """Nothing to guess: the kernel reads ahead by itself."""

    def _mapped(self, path: Path, size: int) -> Any:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            found = os.fstat(fd).st_size
            if found != size:
                raise ShardCorruptError(f"{path}: expected {size} bytes, got {found}: copy it again")
            raw = map_file(fd, size)
            if self._small and size:
                map_what_is_cached(raw, fd, in_memory=self._in_memory)
            return raw
        finally:
            os.close(fd)


# ---- a mount without its engine --------------------------------------------------------------------------------------


class _ReadFile:
    """A file of a mount, read with pread."""

    __slots__ = ("_fd", "guard", "memory", "name", "raw", "size")

    def __init__(self, name: str, path: Path, size: int) -> None:
        self.name, self.size, self.memory = name, size, 0
        self.raw = self.guard = None
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)  # the kernel's readahead would fetch what nobody wants

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):
            os.close(self._fd)

    def head(self, stop: int) -> memoryview:
        return memoryview(self._read(0, stop))

    def decode(self, decoder: Decoder, start: int, stop: int) -> dict[str, Any]:
        return decoder(self._read(start, stop), 0, stop - start)

    def pin(self) -> bool:
        """Nothing of it is mapped."""
        return False

    def unpin(self) -> None:
        """Nothing was pinned."""

    def _read(self, start: int, stop: int) -> bytes:
        pieces = []
        while start < stop:
            piece = os.pread(self._fd, stop - start, start)
            if not piece:
                raise OSError(errno.EIO, f"{self.name}: expected {self.size} bytes, the file ends at {start}")
            pieces.append(piece)
            start += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class MountedFolder:
    """Any filesystem on which mapping a file is not safe."""

    fetches = False
    pinnable = 0

    def __init__(self, path: Path, tables: DatasetTables) -> None:
        self._path = path
        self.tables = tables

    def open(self, file: int) -> ShardFile:
        """Raises OSError."""
        name = self.tables.name(file)
        return _ReadFile(name, self._path / name, int(self.tables.files["size"][file]))

    def prefetch(self, files: Sequence[int]) -> None:
        """The mount can't be told."""

    def entering(self, file: int) -> None:
        """Nothing to guess: the mount sees the reads."""
