"""The residency table (RESIDENCY.md): which 4 KiB blocks of each file are in the cache, wholly or as far as a sample
needs them, readable without asking the engine.

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

__all__ = ["BLOCK", "Bits", "ResidencyReader", "ResidencyWriter", "bitmap_offsets", "blocks_of", "table_size"]

BLOCK = 4096
MAGIC = b"MDSRESID"
VERSION = 2
_HEADER = struct.Struct("<8sIIQQQ")
_GENERATIONS = 4096
_PAGE = 4096
_FALLOC_PUNCH = 0x02 | 0x01  # PUNCH_HOLE | KEEP_SIZE
# A file's bitmaps, one after the other: blocks that are there as a whole, up to the first border of samples in them,
# from the last one on.
_WHOLE, _FRONT, _BACK = 0, 1, 2
_PLANES = 3

Run = tuple[int, int]
Bits = tuple[int, ...]
Buffer = bytes | bytearray | memoryview | mmap.mmap
# Counting bits takes some thirty bytes of memory per byte of bitmap: the tables of many files are counted in pieces.
_PIECE = 1 << 18


def blocks_of(offset: int, length: int) -> Run:
    """First block and number of blocks that a byte range touches."""
    if length <= 0:
        return offset // BLOCK, 0
    first = offset // BLOCK
    return first, (offset + length - 1) // BLOCK - first + 1


def bitmap_offsets(sizes: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Where each file's first bitmap would start if it had no other; one more entry than files."""
    size = np.asarray(sizes, np.int64)
    words = ((size + BLOCK - 1) // BLOCK + 63) // 64
    return np.concatenate((np.zeros(1, np.int64), np.cumsum(words * 8)))


def _bitmaps_at(files: int) -> int:
    return _GENERATIONS + -(-files * 8 // _PAGE) * _PAGE


def table_size(bitmap_at: npt.NDArray[np.int64]) -> int:
    """Apparent size of the table of these bitmaps."""
    return _bitmaps_at(len(bitmap_at) - 1) + _PLANES * int(bitmap_at[-1])


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

    def has_sample(self, file: int, offset: int, length: int) -> bool:
        """The same for a range that is one sample: what else lies on its first and last block is not asked for."""
        first, count = blocks_of(offset, min(length, int(self._sizes[file]) - offset))
        bits, last = self._bits_of(file, first, count), count - 1
        if bits == (1 << count) - 1:
            return True
        if count < 2 or (bits | 1 | 1 << last) != (1 << count) - 1:
            return False
        return bool((bits & 1 or self.has_back(file, first)) and (bits >> last or self.has_front(file, first + last)))

    def has_front(self, file: int, block: int) -> bool:
        """Whether a block is there up to the first border of samples in it."""
        return bool(self._bits_of(file, block, 1) or self._bits_of(file, block, 1, _FRONT))

    def has_back(self, file: int, block: int) -> bool:
        """Whether a block is there from the last border of samples in it on."""
        return bool(self._bits_of(file, block, 1) or self._bits_of(file, block, 1, _BACK))

    def count(self, file: int, first: int, count: int) -> int:
        """How many of these blocks are resident."""
        return self._bits_of(file, first, count).bit_count()

    def occupied(self, file: int, first: int, count: int) -> int:
        """How many of these blocks take room: parts of blocks take as much as blocks."""
        return self._some_of(file, first, count).bit_count()

    def missing(self, file: int, offset: int, length: int) -> list[Run]:
        """The parts of the range that are absent, as (offset, length) in whole blocks clipped to the file."""
        size = int(self._sizes[file])
        first, count = blocks_of(offset, min(length, size - offset))
        return [
            (at * BLOCK, min((at + many) * BLOCK, size) - at * BLOCK)
            for at, many in self.runs(file, first, count, present=False)
        ]

    def extents(self, file: int) -> list[Run]:
        """The file's blocks of which something is resident, as runs (first block, number of blocks)."""
        first, count = blocks_of(0, int(self._sizes[file]))
        return list(self.runs(file, first, count, present=True, parts=True))

    def _place(self, file: int, plane: int) -> int:
        """Where a bitmap of a file begins."""
        at = int(self._at[file])
        return _PLANES * at + (plane * (int(self._at[file + 1]) - at) if plane else 0)

    def _bits_of(self, file: int, first: int, count: int, plane: int = _WHOLE) -> int:
        start = self._place(file, plane) + (first >> 3)
        low = first & 7
        bits = int.from_bytes(self._bits[start : start + (low + count + 7 >> 3)], "little") >> low
        return bits & ((1 << count) - 1)

    def _some_of(self, file: int, first: int, count: int) -> int:
        parts = self._bits_of(file, first, count, _FRONT) | self._bits_of(file, first, count, _BACK)
        return parts | self._bits_of(file, first, count)

    def runs(self, file: int, first: int, count: int, *, present: bool, parts: bool = False) -> Iterator[Run]:
        """Runs of present, or of absent, blocks among these; `parts`: a block is present where a part of it is."""
        if count <= 0:
            return
        bits = self._some_of(file, first, count) if parts else self._bits_of(file, first, count)
        if bits in (0, (1 << count) - 1):  # by far the most frequent
            if (bits != 0) == present:
                yield first, count
            return
        raw = np.frombuffer(bits.to_bytes(count + 7 >> 3, "little"), np.uint8)
        wanted = np.unpackbits(raw, bitorder="little")[:count] == (1 if present else 0)
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

    def set_blocks(self, file: int, first: int, count: int, *, back: bool = False, front: bool = False) -> None:
        """Publish blocks whose data is in the file already.

        `back`: of the first one only what lies behind the last border of samples in it; `front`: of the last one only
        what lies before the first border.
        """
        if front:
            count -= 1
            self._change(file, first + count, 1, _FRONT, present=True)
        if back and count:
            self._change(file, first, 1, _BACK, present=True)
            first, count = first + 1, count - 1
        self._change(file, first, count, _WHOLE, present=True)

    def clear_blocks(self, file: int, first: int, count: int) -> Bits:
        """Withdraw blocks; only between `begin` and `end`. What was there, for `restore`."""
        found = tuple(self._bits_of(file, first, count, plane) for plane in range(_PLANES))
        for plane in range(_PLANES):
            self._change(file, first, count, plane, present=False)
        return found

    def restore(self, file: int, first: int, count: int, bits: Bits) -> None:
        """Publish again what `clear_blocks` has withdrawn; the data is still there."""
        for plane, each in enumerate(bits):
            self._write(file, first, count, plane, each, each)

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
            self.clear_blocks(file, first, count)
        self.free_pages(file)

    def free_pages(self, file: int) -> None:
        """Punch those pages under the file's bitmaps that hold no bit of any file."""
        base = len(self._view) - len(self._bits)
        start, stop = self._place(file, _WHOLE) // _PAGE, -(-self._place(file + 1, _WHOLE) // _PAGE)
        for page in range(start, stop):
            at = page * _PAGE
            if not any(self._bits[at : at + _PAGE]):
                _punch(self.fd, base + at, _PAGE)

    def resident_blocks(self) -> npt.NDArray[np.int64]:
        """Blocks of every file that take room, read from the table's pages that exist: costs follow what is there."""
        counts = np.zeros(len(self._generations), np.int64)
        for first, stop in self._files_with_pages():
            while first < stop:
                # at least one file at a time, however large its bitmaps
                upto = max(int(np.searchsorted(self._at, self._at[first] + _PIECE, "right")) - 1, first + 1)
                counts[first : min(upto, stop)] = self._count_files(first, min(upto, stop))
                first = upto
        return counts

    def _files_with_pages(self) -> Iterator[Run]:
        """Runs of files, from one to before another, that may have a bit set; in order, none twice."""
        base = len(self._view) - len(self._bits)
        done = 0
        for begin, end in _data_runs(self.fd, base, len(self._view)):
            first = int(np.searchsorted(self._at, (begin - base) // _PLANES, "right")) - 1
            stop = min(int(np.searchsorted(self._at, -(-(end - base) // _PLANES), "left")), len(self._generations))
            if max(first, done) < stop:
                yield max(first, done), stop
                done = stop

    def _count_files(self, first: int, stop: int) -> npt.NDArray[np.int64]:
        base = len(self._view) - len(self._bits)
        at = self._at[first : stop + 1] - self._at[first]
        length = _PLANES * int(at[-1])
        words = np.frombuffer(os.pread(self.fd, length, base + self._place(first, _WHOLE)), np.uint8)
        widths = np.diff(at)
        each = np.repeat(widths, widths)
        places = np.arange(at[-1]) + (_PLANES - 1) * np.repeat(at[:-1], widths)
        some = words[places] | words[places + each] | words[places + 2 * each]
        ones = np.concatenate((np.zeros(1, np.int64), np.cumsum(_ONES[some], dtype=np.int64)))
        return np.asarray(np.diff(ones[at]), np.int64)

    def _set_generation(self, file: int, value: int) -> None:
        os.pwrite(self.fd, value.to_bytes(8, "little"), _GENERATIONS + 8 * file)

    def _change(self, file: int, first: int, count: int, plane: int, *, present: bool) -> None:
        if count > 0:
            mask = (1 << count) - 1
            self._write(file, first, count, plane, mask, mask if present else 0)

    def _write(self, file: int, first: int, count: int, plane: int, which: int, bits: int) -> None:
        """Those bits of a bitmap that are in `which` are from now on as in `bits`, both counted from `first`."""
        start = self._place(file, plane) + (first >> 3)
        low = first & 7
        length = low + count + 7 >> 3
        old = int.from_bytes(self._bits[start : start + length], "little")
        new = old & ~(which << low) | bits << low
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
