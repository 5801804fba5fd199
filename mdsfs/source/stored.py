"""A stored file of a shard as its raw bytes in pieces, with everything compared that the index says about it.

Streaming: what is in memory is one piece stored and one raw, whatever the shard's size. The comparison ends with the
last piece, so whoever wants to know must take all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from streaming.errors import MissingDependencyError, ShardCorruptError, ShardFormatError
from streaming.mds.compression import open_decompressor
from streaming.mds.hashing import Hash, new_hash
from streaming.mds.layout import head_size, read_offsets
from streaming.mds.split import read_line_offsets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from streaming.mds.shards import FileInfo, ShardInfo
    from streaming.remote import RangeReader, Remote

    Chunks = Iterator[memoryview]

__all__ = ["PIECE", "Digests", "StoredFile", "read_head", "read_meta", "usable_hashes"]

# Large enough that calls cost nothing beside their bytes, small enough for several jobs to run beside each other.
PIECE = 512 << 10


class Digests:
    """Several hashes of one stream of bytes, and its length."""

    def __init__(self, names: Iterable[str]) -> None:
        self.size = 0
        self._hashes: dict[str, Hash] = {name: new_hash(name) for name in names}

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Take in more bytes."""
        self.size += len(data)
        for each in self._hashes.values():
            each.update(data)

    def found(self) -> dict[str, str]:
        """Name to hex digest."""
        return {name: each.hexdigest() for name, each in self._hashes.items()}

    def check(self, what: str, info: FileInfo) -> None:
        """Raise ShardCorruptError where size or one of the digests is not the one that the index has."""
        if self.size != info.bytes:
            raise ShardCorruptError(f"{what}: expected {info.bytes} bytes, got {self.size}")
        for name, digest in self.found().items():
            if (expected := info.hashes.get(name)) not in (None, digest):
                raise ShardCorruptError(f"{what}: expected {name} {expected}, got {digest}")


def usable_hashes(expected: Mapping[str, str]) -> list[str]:
    """Those of the expected hashes that can be computed here: all, or without xxhash those that need it not.

    Raises MissingDependencyError where none is left.
    """
    usable, missing = [], None
    for name in expected:
        try:
            new_hash(name)
            usable.append(name)
        except MissingDependencyError as error:
            missing = error
    if missing is not None and not usable:
        raise missing
    return usable


class StoredFile:
    """One file of a shard, by its (raw, stored) entries of the index, of which the names are keys of the remote."""

    def __init__(
        self,
        remote: Remote,
        pair: tuple[FileInfo, FileInfo | None],
        compression: str | None,
        *,
        also: Iterable[str] = (),
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """`also`: further hashes to compute of the raw bytes; `check` is called now and then, and may raise."""
        self._remote = remote
        self._raw, stored = pair
        self._stored = stored or self._raw
        self._compression = compression if stored is not None else None
        self.key = self._stored.basename
        self.etag: str | None = None
        """The version that was read; known after the last piece."""
        self.raw_digests = Digests(dict.fromkeys([*usable_hashes(self._raw.hashes), *also]))
        self._stored_digests = Digests(usable_hashes(self._stored.hashes) if self._compression else ())
        self._check = check

    @property
    def _url(self) -> str:
        return f"{self._remote.url.rstrip('/')}/{self.key}"

    def pieces(self) -> Iterator[memoryview]:
        """The raw bytes; each piece is valid until the next one is asked for.

        Raises ShardCorruptError where size or hash is another one, ObjectMissingError, and whatever the store says.
        """
        with self._remote.open_range(self.key, 0, None) as reader:
            if reader.size != self._stored.bytes:
                raise ShardCorruptError(f"{self._url}: expected {self._stored.bytes} bytes, got {reader.size}")
            self.etag = reader.etag
            source = _Source(reader, self._stored_digests, self._check)
            yield from self._decompressed(source) if self._compression else self._as_stored(source)
            if self._compression:
                self._stored_digests.check(self._url, self._stored)
            self.raw_digests.check(self._url, self._raw)

    def _as_stored(self, source: _Source) -> Iterator[memoryview]:
        while len(piece := source.read(PIECE)):
            self.raw_digests.update(piece)
            yield piece

    def _decompressed(self, source: _Source) -> Iterator[memoryview]:
        assert self._compression is not None
        stream = open_decompressor(self._compression, source, self._raw.bytes)
        buffer = memoryview(bytearray(PIECE))
        left = self._raw.bytes
        try:
            while left or stream.readinto(buffer[:1]):  # an empty file is drained as well
                got = stream.readinto(buffer)
                left -= got
                self.raw_digests.update(buffer[:got])
                yield buffer[:got]
        except ShardCorruptError as error:
            raise ShardCorruptError(f"{self._url}: {error}") from error


class _Source:
    """Stored bytes for a decompressor, counted and hashed on their way."""

    def __init__(self, reader: RangeReader, digests: Digests, check: Callable[[], None]) -> None:
        self._reader = reader
        self._digests = digests
        self._check = check
        self._buffer = memoryview(bytearray(PIECE))

    def read(self, size: int, /) -> memoryview:
        """At most `size` bytes; nothing only at the end."""
        self._check()
        piece = self._buffer[: self._reader.readinto(self._buffer[: min(size, PIECE)])]
        self._digests.update(piece)
        return piece


def read_head(chunks: Chunks, shard: ShardInfo) -> tuple[bytearray, NDArray[np.int64]]:
    """What was taken of an MDS shard's pieces to know its samples, and where they begin and the last one ends.

    Raises ShardFormatError where the offsets are not those of such a shard.
    """
    head = bytearray()
    needed = head_size(shard.samples)
    while len(head) < needed and (piece := next(chunks, None)) is not None:
        head += piece
    try:
        return head, read_offsets(head, shard.samples, shard.raw_data.bytes)
    except ShardFormatError as error:
        raise ShardFormatError(f"{shard.raw_data.basename}: {error}") from error


def read_meta(meta: bytes, shard: ShardInfo) -> NDArray[np.int64]:
    """The same of a split shard, from its meta file."""
    try:
        return read_line_offsets(meta, shard.samples, shard.raw_data.bytes)
    except ShardFormatError as error:
        assert shard.raw_meta is not None
        raise ShardFormatError(f"{shard.raw_meta.basename}: {error}") from error
