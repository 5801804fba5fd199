"""Compression names of index.json (`zstd`, `gz:6` …) and their codecs, whole and streaming.

Decompressing is bounded by the size that the index declares: whatever the stored bytes say of themselves, no more than
that is ever produced, and more or less of it is an error. Optional codecs are imported on use.
"""

from __future__ import annotations

import bz2
import io
import zlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import zstandard

from streaming.errors import MissingDependencyError, ShardCorruptError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Buffer = bytes | bytearray | memoryview

__all__ = [
    "Decompressor",
    "Source",
    "compress",
    "compression_names",
    "decompress",
    "extension",
    "is_compression",
    "open_decompressor",
    "split_compression",
]

# name: lowest level, highest level, default (None: it has no levels)
_LEVELS: dict[str, tuple[int, int, int] | None] = {
    "br": (0, 11, 11),
    "bz2": (1, 9, 9),
    "gz": (0, 9, 9),
    "snappy": None,
    "zstd": (1, 22, 3),
}
_NAMES = frozenset(
    name
    for kind, levels in _LEVELS.items()
    for name in (kind, *(f"{kind}:{level}" for level in (range(levels[0], levels[1] + 1) if levels else ())))
)

# Stored bytes taken from the source at a time: large enough that the calls cost nothing, small enough to stay in the L2
# cache beside the output.
_PIECE = 1 << 18
# zstd's own ceiling for decoders (2**27), which its highest levels reach; a frame that asks for more is refused.
_MAX_WINDOW = 1 << 27


def compression_names() -> list[str]:
    """Every name that index.json may use, sorted."""
    return sorted(_NAMES)


def is_compression(name: str) -> bool:
    """Whether the name is one that index.json may use."""
    return name in _NAMES


def split_compression(name: str) -> tuple[str, int]:
    """(codec, level) of a name, with the codec's default level; -1 for one without levels. ValueError when unknown."""
    if name not in _NAMES:
        raise ValueError(f"Invalid compression: {name}. Expected br, bz2, gz, snappy or zstd, maybe with :level")
    kind, _, level = name.partition(":")
    levels = _LEVELS[kind]
    if levels is None:
        return kind, -1
    return kind, int(level) if level else levels[2]


def extension(name: str) -> str:
    """The extension of files compressed so, without its dot: the name without its level."""
    return split_compression(name)[0]


# ---- whole -----------------------------------------------------------------------------------------------------------


def compress(name: str, data: Buffer) -> bytes:
    """The data as one compressed file. The same data and name give the same bytes (gz carries no time)."""
    kind, level = split_compression(name)
    if kind == "zstd":
        return bytes(zstandard.ZstdCompressor(level=level).compress(data))
    if kind == "gz":
        deflate = zlib.compressobj(level, zlib.DEFLATED, 31)
        return deflate.compress(data) + deflate.flush()
    if kind == "bz2":
        return bz2.compress(data, level)
    if kind == "br":
        return bytes(_brotli().compress(bytes(data), quality=level))
    return bytes(_snappy().compress(bytes(data)))


def decompress(name: str, data: Buffer, size: int) -> memoryview:
    """All `size` bytes of a compressed file. Raises ShardCorruptError when it holds more, less, or nonsense."""
    out = np.empty(size, np.uint8).data  # bytearray would fill it with zeros first
    stream = open_decompressor(name, io.BytesIO(data), size)
    got = 0
    while got < size:
        got += stream.readinto(out[got:])
    if not size:
        stream.readinto(memoryview(bytearray(1)))
    return out.toreadonly()


# ---- streaming -------------------------------------------------------------------------------------------------------


class Source(Protocol):
    """Where a decompressor takes stored bytes from."""

    def read(self, size: int, /) -> bytes | bytearray | memoryview:
        """At most `size` bytes; nothing only at the end. The decompressor is done with them before it asks again."""


class Decompressor(ABC):
    """A compressed file as a stream of exactly `size` bytes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._left = size
        self._ended = False

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer as far as bytes remain; 0 only at the end.

        With the last byte it makes sure that the file ends there, which drains the source. Raises ShardCorruptError
        where the file is damaged, ends early, or inflates past its size; what the source raises passes through.
        """
        view = memoryview(buffer).cast("B")[: self._left]
        got = 0
        while got < len(view):
            count = self._produce(view[got:])
            if not count:
                found = self.size - self._left + got
                raise ShardCorruptError(f"expected {self.size} bytes after decompression, got only {found}")
            got += count
        self._left -= got
        if not self._left and not self._ended:
            if self._produce(memoryview(bytearray(1))):
                raise ShardCorruptError(f"expected {self.size} bytes after decompression, got more")
            self._ended = True
        return got

    @abstractmethod
    def _produce(self, view: memoryview) -> int:
        """Writes at least one byte into the view and says how many, or 0 at the end of the compressed data."""


def open_decompressor(name: str, source: Source, size: int) -> Decompressor:
    """A stream of the `size` bytes that the source holds compressed.

    zstd may be any number of frames, with or without their size, skippable ones among them; gz and bz2 any number of
    members. snappy's block format can't be streamed: both forms are in memory.
    """
    kind, _ = split_compression(name)
    if kind == "zstd":
        return _Zstd(source, size)
    if kind == "snappy":
        return _Snappy(source, size)
    decoders: dict[str, Callable[[], _Decoder]] = {"gz": _Inflate, "bz2": bz2.BZ2Decompressor, "br": _Unbrotli}
    return _Members(source, size, decoders[kind])


def _damaged(error: Exception) -> ShardCorruptError:
    return ShardCorruptError(f"stored bytes can't be decompressed: {error}")


class _Zstd(Decompressor):
    def __init__(self, source: Source, size: int) -> None:
        super().__init__(size)
        decoder = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
        self._reader = decoder.stream_reader(cast("Any", source), read_size=_PIECE, read_across_frames=True)

    def _produce(self, view: memoryview) -> int:
        try:
            return int(self._reader.readinto(view))
        except zstandard.ZstdError as error:
            raise _damaged(error) from error


class _Decoder(Protocol):
    """bz2's decoder interface, which the adapters below give to the others."""

    def decompress(self, data: Buffer, max_length: int, /) -> bytes: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...


class _Members(Decompressor):
    """One decoder after the other over what the source gives, until it ends."""

    def __init__(self, source: Source, size: int, decoder: Callable[[], _Decoder]) -> None:
        super().__init__(size)
        self._source = source
        self._new = decoder
        self._decoder = decoder()
        self._rest = memoryview(b"")

    def _produce(self, view: memoryview) -> int:
        while not self._rest:
            data: Buffer = b""
            asked = self._decoder.needs_input
            if self._decoder.eof:
                data = self._decoder.unused_data or self._source.read(_PIECE)
                if not data:
                    return 0
                self._decoder = self._new()
            elif asked:
                data = self._source.read(_PIECE)
            self._rest = memoryview(self._decode(data, len(view)))
            if asked and not (data or self._rest or self._decoder.eof):
                raise ShardCorruptError("stored bytes can't be decompressed: they end in mid-stream")
        count = min(len(view), len(self._rest))
        view[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def _decode(self, data: Buffer, most: int) -> bytes:
        try:
            return self._decoder.decompress(data, most)
        except (OSError, EOFError, ValueError, zlib.error, _BrotliFailed) as error:
            raise _damaged(error) from error


class _Inflate:
    """One gzip member."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(31)
        self.needs_input = True

    def decompress(self, data: Buffer, max_length: int) -> bytes:
        if self._zlib.unconsumed_tail:
            data = self._zlib.unconsumed_tail
        out = self._zlib.decompress(data, max_length)
        # a full output may hide more of it inside the decoder, even when all input was taken
        self.needs_input = len(out) < max_length and not self._zlib.unconsumed_tail
        return out

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data.lstrip(b"\0")  # gzip files may be padded with zeros


class _BrotliFailed(Exception):
    """brotli's own error, whose class is only there when the library is."""


class _Unbrotli:
    """A brotli stream; it may not be followed by anything."""

    def __init__(self) -> None:
        self._brotli = _brotli()
        self._stream = self._brotli.Decompressor()

    def decompress(self, data: Buffer, max_length: int) -> bytes:
        try:
            return bytes(self._stream.process(bytes(data), output_buffer_limit=max_length))
        except self._brotli.error as error:
            raise _BrotliFailed(error) from error

    @property
    def needs_input(self) -> bool:
        return bool(self._stream.can_accept_more_data())

    @property
    def eof(self) -> bool:
        return bool(self._stream.is_finished())

    @property
    def unused_data(self) -> bytes:
        return b""


def _pieces(source: Source) -> Iterator[bytes]:
    while piece := source.read(_PIECE):
        yield bytes(piece)


class _Snappy(Decompressor):
    """A snappy block, decompressed at once when its first byte is asked for."""

    def __init__(self, source: Source, size: int) -> None:
        super().__init__(size)
        self._source: Source | None = source
        self._rest = memoryview(b"")
        self._snappy = _snappy()

    def _produce(self, view: memoryview) -> int:
        if self._source is not None:
            stored = b"".join(_pieces(self._source))
            self._source = None
            self._rest = memoryview(self._whole(stored))
        count = min(len(view), len(self._rest))
        view[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def _whole(self, stored: bytes) -> bytes:
        size = _snappy_size(stored)
        if size != self.size:  # before the library allocates that much
            raise ShardCorruptError(f"expected {self.size} bytes after decompression, got a block of {size}")
        try:
            return bytes(self._snappy.uncompress(stored))
        except self._snappy.UncompressError as error:  # its text is empty
            raise ShardCorruptError("stored bytes can't be decompressed: invalid snappy block") from error


def _snappy_size(stored: bytes) -> int:
    """The size that a snappy block declares: a little-endian base-128 number of at most five bytes at its start."""
    size = 0
    for at, byte in enumerate(stored[:5]):
        size |= (byte & 127) << (7 * at)
        if byte < 128:
            return size
    raise ShardCorruptError("stored bytes can't be decompressed: expected a snappy block")


# ---- optional libraries ----------------------------------------------------------------------------------------------


def _brotli() -> Any:
    try:
        import brotli
    except ImportError as error:
        raise MissingDependencyError("compression br needs brotli: pip install 'mdsfs[br]'") from error
    return brotli


def _snappy() -> Any:
    try:
        import snappy
    except ImportError as error:
        raise MissingDependencyError("compression snappy needs python-snappy: pip install 'mdsfs[snappy]'") from error
    return snappy
