"""The residency table (RESIDENCY.md): which 4 KiB blocks of each file are in the cache, readable without asking the
engine.

`ResidencyReader` looks at a mapped table; `ResidencyWriter`, of which the engine alone has one, changes it. The writer
never stores through the mapping: a store into a hole of a sparse file on a full disk would be a SIGBUS, where `pwrite`
is an ENOSPC.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import struct
from typing import TYPE_CHECKING

import numpy as np

from streaming.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt

__all__ = ["BLOCK", "ResidencyReader", "ResidencyWriter", "bitmap_offsets", "blocks_of", "table_size"]

BLOCK = 4096
MAGIC = b"MDSRESID"
VERSION = 1
_HEADER = struct.Struct("<8sIIQQQ")
_GENERATIONS = 4096
_PAGE = 4096
_FALLOC_PUNCH = 0x02 | 0x01  # PUNCH_HOLE | KEEP_SIZE

Run = tuple[int, int]
Buffer = bytes | bytearray | memoryview | mmap.mmap
# Counting bits takes 9 bytes of memory per byte of bitmap: a table of any size is counted in pieces.
_PIECE = 1 << 20


def blocks_of(offset: int, length: int) -> Run:
    """First block and number of blocks that a byte range touches."""
    if length <= 0:
        return offset // BLOCK, 0
    first = offset // BLOCK
    return first, (offset + length - 1) // BLOCK - first + 1


def bitmap_offsets(sizes: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Where each file's bitmap starts, relative to the bitmaps; one more entry than files."""
    size = np.asarray(sizes, np.int64)
    words = ((size + BLOCK - 1) // BLOCK + 63) // 64
    return np.concatenate((np.zeros(1, np.int64), np.cumsum(words * 8)))


def _bitmaps_at(files: int) -> int:
    return _GENERATIONS + -(-files * 8 // _PAGE) * _PAGE


def table_size(bitmap_at: npt.NDArray[np.int64]) -> int:
    """Apparent size of the table of these bitmaps."""
    return _bitmaps_at(len(bitmap_at) - 1) + int(bitmap_at[-1])


class ResidencyReader:
    """Looks at a table that somebody else may be changing; every answer is true at one instant only.

    Hold on to the pattern of RESIDENCY.md: generation, bits, copy, generation again.
    """

    def __init__(self, buffer: Buffer, bitmap_at: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> None:
        view = memoryview(buffer).cast("B")
        files = len(bitmap_at) - 1
        if len(view) < _HEADER.size:
            raise EngineError("the residency table is cut off: restart the engine")
        magic, version, block, count, bitmaps, size = _HEADER.unpack_from(view)
        if (magic, version, block) != (MAGIC, VERSION, BLOCK):
            raise EngineError(f"the residency table is of another kind or version, expected {MAGIC.decode()} {VERSION}")
        if count != files or bitmaps != _bitmaps_at(files) or size != len(view) or size != table_size(bitmap_at):
            raise EngineError(f"the residency table does not fit the dataset: {count} files, expected {files}")
        self._view = view
        self._generations = view[_GENERATIONS : _GENERATIONS + files * 8].cast("Q")
        self._bits = view[bitmaps:]
        self._at = bitmap_at
        self._sizes = sizes

    def __repr__(self) -> str:
        return f"{type(self).__name__}(files={len(self._generations)})"

    def close(self) -> None:
        """Let go of the buffer, so that its owner may close it."""
        for view in (self._generations, self._bits, self._view):
            view.release()

    def generation(self, file: int) -> int:
        """The file's generation; odd while blocks are being taken away."""
        return self._generations[file]

    def is_resident(self, file: int, offset: int, length: int) -> bool:
        """Whether every byte of the range is there; bytes past the end of the file are not asked for."""
        length = min(length, int(self._sizes[file]) - offset)
        if length <= 0:
            return True
        first = offset // BLOCK
        count = (offset + length - 1) // BLOCK - first + 1
        return self._bits_of(file, first, count) == (1 << count) - 1

    def count(self, file: int, first: int, count: int) -> int:
        """How many of these blocks are resident."""
        return self._bits_of(file, first, count).bit_count()

    def missing(self, file: int, offset: int, length: int) -> list[Run]:
        """The parts of the range that are absent, as (offset, length) in whole blocks clipped to the file."""
        size = int(self._sizes[file])
        first, count = blocks_of(offset, min(length, size - offset))
        return [
            (at * BLOCK, min((at + many) * BLOCK, size) - at * BLOCK)
            for at, many in self.runs(file, first, count, present=False)
        ]

    def extents(self, file: int) -> list[Run]:
        """The file's resident blocks as runs (first block, number of blocks)."""
        first, count = blocks_of(0, int(self._sizes[file]))
        return list(self.runs(file, first, count, present=True))

    def _bits_of(self, file: int, first: int, count: int) -> int:
        start = int(self._at[file]) + (first >> 3)
        low = first & 7
        bits = int.from_bytes(self._bits[start : start + (low + count + 7 >> 3)], "little") >> low
        return bits & ((1 << count) - 1)

    def runs(self, file: int, first: int, count: int, *, present: bool) -> Iterator[Run]:
        """Runs of present, or of absent, blocks among these."""
        if count <= 0:
            return
        bits = self._bits_of(file, first, count)
        if bits in (0, (1 << count) - 1):  # by far the most frequent
            if (bits != 0) == present:
                yield first, count
            return
        start = int(self._at[file]) + (first >> 3)
        low = first & 7
        raw = np.frombuffer(bytes(self._bits[start : start + (low + count + 7 >> 3)]), np.uint8)
        wanted = np.unpackbits(raw, bitorder="little")[low : low + count] == (1 if present else 0)
        edges = np.flatnonzero(np.diff(np.concatenate(([False], wanted, [False])).astype(np.int8)))
        for begin, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            yield first + begin, end - begin


class ResidencyWriter(ResidencyReader):
    """The engine's side. One per table; calls come from one thread.

    Blocks appear by `set_blocks` after their data was written. They disappear between `begin` and `end`:
    `begin` (odd), `clear_blocks`, the caller punches the hole, `end` (even).
    """

    def __init__(self, fd: int, bitmap_at: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> None:
        """Takes over `fd`, a table that `create` has made."""
        self.fd = fd
        self._map = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
        super().__init__(self._map, bitmap_at, sizes)

    @classmethod
    def open(cls, path: Path, sizes: Sequence[int] | npt.NDArray[np.int64]) -> ResidencyWriter:
        """The writer of an existing table, or of a new empty one where none is."""
        table = np.asarray(sizes, np.int64)
        bitmap_at = bitmap_offsets(table)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(fd).st_size == 0:
                _write_header(fd, bitmap_at)
            return cls(fd, bitmap_at, table)
        except BaseException:
            os.close(fd)
            raise

    def close(self) -> None:
        """Let go of the table."""
        super().close()
        self._map.close()
        os.close(self.fd)

    def set_blocks(self, file: int, first: int, count: int) -> None:
        """Publish blocks whose data is in the file already."""
        self._change(file, first, count, present=True)

    def clear_blocks(self, file: int, first: int, count: int) -> None:
        """Withdraw blocks; only between `begin` and `end`."""
        self._change(file, first, count, present=False)

    def begin(self, file: int) -> None:
        """Make the generation odd: readers stop trusting what they copy."""
        self._set_generation(file, self.generation(file) | 1)

    def end(self, file: int) -> None:
        """Make the generation even again, and another one than before."""
        self._set_generation(file, (self.generation(file) | 1) + 1)

    def changing(self) -> list[int]:
        """Files with an odd generation: whoever changed them has not come to the end, or was killed before it."""
        found: list[int] = []
        for begin, end in _data_runs(self.fd, _GENERATIONS, _GENERATIONS + 8 * len(self._generations)):
            values = np.frombuffer(bytes(self._view[begin:end]), "<u8")
            found.extend(((begin - _GENERATIONS) // 8 + np.flatnonzero(values & 1)).tolist())
        return found

    def clear_file(self, file: int) -> None:
        """Withdraw all of a file and free what pages its bitmap has alone; between `begin` and `end`."""
        # by what is there, since zeros written into a hole of the table would take room
        for first, count in self.extents(file):
            self._change(file, first, count, present=False)
        self.free_pages(file)

    def free_pages(self, file: int) -> None:
        """Punch those pages under the file's bitmap that hold no bit of any file."""
        base = len(self._view) - len(self._bits)
        start, stop = int(self._at[file]) // _PAGE, -(-int(self._at[file + 1]) // _PAGE)
        for page in range(start, stop):
            at = page * _PAGE
            if not any(self._bits[at : at + _PAGE]):
                _punch(self.fd, base + at, _PAGE)

    def resident_blocks(self) -> npt.NDArray[np.int64]:
        """Resident blocks of every file, read from the pages of the table that exist: costs follow what is resident."""
        counts = np.zeros(len(self._generations), np.int64)
        base = len(self._view) - len(self._bits)
        for begin, end in _data_runs(self.fd, base, len(self._view)):
            words = np.frombuffer(bytes(self._view[begin:end]), np.uint8)
            files_from = int(np.searchsorted(self._at, begin - base, "right")) - 1
            files_to = int(np.searchsorted(self._at, end - base, "left"))
            ones = np.concatenate((np.zeros(1, np.int64), np.cumsum(_ONES[words], dtype=np.int64)))
            edges = np.clip(self._at[files_from : files_to + 1] - (begin - base), 0, len(words))
            counts[files_from:files_to] += ones[edges[1:]] - ones[edges[:-1]]
        return counts

    def _set_generation(self, file: int, value: int) -> None:
        os.pwrite(self.fd, value.to_bytes(8, "little"), _GENERATIONS + 8 * file)

    def _change(self, file: int, first: int, count: int, *, present: bool) -> None:
        if count <= 0:
            return
        start = int(self._at[file]) + (first >> 3)
        low = first & 7
        length = low + count + 7 >> 3
        old = int.from_bytes(self._bits[start : start + length], "little")
        mask = ((1 << count) - 1) << low
        new = old | mask if present else old & ~mask
        if new != old:
            self._pwrite(new.to_bytes(length, "little"), start)

    def _pwrite(self, data: bytes, at: int) -> None:
        os.pwrite(self.fd, data, len(self._view) - len(self._bits) + at)


_ONES = np.array([byte.bit_count() for byte in range(256)], np.uint8)
_libc = ctypes.CDLL(None, use_errno=True)


def _write_header(fd: int, bitmap_at: npt.NDArray[np.int64]) -> None:
    files, size = len(bitmap_at) - 1, table_size(bitmap_at)
    os.ftruncate(fd, size)
    os.pwrite(fd, _HEADER.pack(MAGIC, VERSION, BLOCK, files, _bitmaps_at(files), size), 0)


def _data_runs(fd: int, at: int, end: int) -> Iterator[Run]:
    while at < end:
        try:
            begin = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole is left
            return
        stop = min(os.lseek(fd, begin, os.SEEK_HOLE), end)
        for at in range(begin, stop, _PIECE):
            yield at, min(at + _PIECE, stop)
        at = max(stop, begin + 1)


def _punch(fd: int, at: int, length: int) -> None:
    # Freeing a page is thrift, not correctness: a filesystem without holes keeps its zeros.
    with contextlib.suppress(OSError):
        if _libc.fallocate(fd, _FALLOC_PUNCH, ctypes.c_long(at), ctypes.c_long(length)):
            raise OSError(ctypes.get_errno(), "fallocate")
