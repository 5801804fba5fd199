"""Compression and hashing of whole values in memory, by the names of index.json."""

from __future__ import annotations

import bz2
import io
import zlib
from typing import TYPE_CHECKING, Any, ClassVar

import zstandard

from streaming.errors import ShardCorruptError
from streaming.mds import compression as codec
from streaming.mds import hashing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

__all__ = [
    "compress",
    "decompress",
    "get_compression_extension",
    "get_compressions",
    "get_hash",
    "get_hashes",
    "is_compression",
    "is_hash",
]


def get_compressions() -> set[str]:
    """Every name that index.json may use."""
    return set(codec.compression_names())


def is_compression(algo: str | None) -> bool:
    """Whether index.json may use the name."""
    return algo is not None and codec.is_compression(algo)


def get_compression_extension(algo: str) -> str:
    """The extension of files compressed so, without its dot. ValueError for an unknown name."""
    return codec.extension(_known(algo))


def compress(algo: str | None, data: bytes) -> bytes:
    """The data compressed; as it is where `algo` is None. ValueError for an unknown name."""
    return data if algo is None else codec.compress(_known(algo), data)


def decompress(algo: str | None, data: bytes) -> bytes:
    """The data decompressed, however large that is. ValueError for an unknown name, ShardCorruptError for nonsense."""
    if algo is None:
        return data
    kind, _ = codec.split_compression(_known(algo))
    try:
        return _whole(kind, data)
    except (OSError, EOFError, ValueError, zlib.error, zstandard.ZstdError) as error:
        raise ShardCorruptError(f"bytes can't be decompressed as {algo}: {error}") from error


def _whole(kind: str, data: bytes) -> bytes:
    if kind == "zstd":
        with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True) as reader:
            return bytes(reader.read())
    if kind == "gz":
        import gzip

        return gzip.decompress(data)
    if kind == "bz2":
        return bz2.decompress(data)
    library: Any = codec._brotli() if kind == "br" else codec._snappy()
    failed = library.error if kind == "br" else library.UncompressError
    try:
        return bytes(library.decompress(data))
    except failed as error:
        raise ValueError(f"invalid data: {error}") from error


def _known(algo: str) -> str:
    if not codec.is_compression(algo):
        raise ValueError(f"{algo} is not a supported compression algorithm.")
    return algo


def get_hashes() -> set[str]:
    """Every name that index.json may use."""
    return set(hashing.hash_names())


def is_hash(algo: str) -> bool:
    """Whether index.json may use the name."""
    return hashing.is_hash(algo)


def get_hash(algo: str, data: bytes) -> str:
    """The hash of the data in hex. ValueError for an unknown name."""
    if not hashing.is_hash(algo):
        raise ValueError(f"{algo} is not a supported hash algorithm.")
    return hashing.hash_all([algo], data)[algo]


class Compression:
    """A codec at one of its levels; None takes its default."""

    extension: ClassVar[str]
    levels: ClassVar[range] = range(0)

    def __init__(self, level: int | None = None) -> None:
        self.name = self.extension if level is None else f"{self.extension}:{level}"
        _known(self.name)

    @classmethod
    def each(cls) -> Iterator[tuple[str, Self]]:
        """(name, codec) without a level and at each level."""
        yield cls.extension, cls()
        for level in cls.levels:
            made = cls(level)
            yield made.name, made

    def compress(self, data: bytes) -> bytes:
        """The data compressed."""
        return compress(self.name, data)

    def decompress(self, data: bytes) -> bytes:
        """The data decompressed."""
        return decompress(self.name, data)


class Brotli(Compression):
    """Brotli."""

    extension = "br"
    levels = range(12)


class Bzip2(Compression):
    """bzip2."""

    extension = "bz2"
    levels = range(1, 10)


class Gzip(Compression):
    """gzip."""

    extension = "gz"
    levels = range(10)


class Snappy(Compression):
    """Snappy's block format."""

    extension = "snappy"


class Zstandard(Compression):
    """Zstandard."""

    extension = "zstd"
    levels = range(1, 23)
