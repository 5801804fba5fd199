"""Which frames of a seekable shard to fetch for a run of blocks, and what to do with the blocks that frames share.
Pure.

Frames end where samples end, not where blocks do: most borders lie inside a block, and a block is resident only as a
whole. The part of it that came with one frame is kept here (a few kilobytes in memory, never on the disk), until the
frame beside it is fetched, or until a flight needs nothing but such parts. Who asks for a sample alone needs no such
block as a whole, hence no frame but the sample's own.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from streaming.engine.residency import BLOCK

if TYPE_CHECKING:
    from streaming.mds.seekable import Frame, SeekTable

    from ..cache.dataset import Run
    from ..cache.ledger import FileKey
    from ..fetching.jobs import Piece
    from .flights import ByteRange

__all__ = ["MOST_EDGES", "Edges", "Framing", "cut_at_frames", "frame_run", "frame_sample"]

# 4096 parts of blocks are 16 MiB at the most; one that is gone costs fetching its frame once more.
MOST_EDGES = 4096


class Edges:
    """Parts of blocks, one consecutive piece per block; the ones used longest ago are forgotten."""

    def __init__(self, most: int = MOST_EDGES) -> None:
        self._most = most
        self._pieces: OrderedDict[tuple[FileKey, int], Piece] = OrderedDict()

    def __repr__(self) -> str:
        return f"Edges({len(self._pieces)} of {self._most})"

    def keep(self, file: FileKey, at: int, data: bytes) -> None:
        """Remember bytes that lie inside one block; joined with what is known of it where the two touch."""
        key = (file, at // BLOCK)
        known = self._pieces.pop(key, None)
        if known is not None:
            before, after = sorted([known, (at, data)], key=lambda piece: piece[0])
            if before[0] + len(before[1]) >= after[0]:
                overlap = before[0] + len(before[1]) - after[0]
                at, data = before[0], before[1] + after[1][overlap:]
        self._pieces[key] = (at, data)
        while len(self._pieces) > self._most:
            self._pieces.popitem(last=False)

    def after(self, file: FileKey, at: int) -> bytes:
        """What is known of the block from `at` on, without a gap."""
        known = self._pieces.get((file, at // BLOCK))
        if known is None or not known[0] <= at < known[0] + len(known[1]):
            return b""
        return known[1][at - known[0] :]

    def before(self, file: FileKey, at: int) -> bytes:
        """What is known of the block that `at` ends or lies in, up to `at`, without a gap."""
        known = self._pieces.get((file, (at - 1) // BLOCK))
        if known is None or not known[0] < at <= known[0] + len(known[1]):
            return b""
        return known[1][: at - known[0]]

    def forget(self, file: FileKey) -> None:
        """The file's bytes are not to be trusted, or gone."""
        for key in [each for each in self._pieces if each[0] == file]:
            del self._pieces[key]


@dataclass(frozen=True, slots=True)
class Framing:
    """A range of bytes that frames and kept parts fill, and `covers`, which no other flight needs to fetch."""

    span: ByteRange
    covers: ByteRange
    frames: tuple[Frame, ...]
    patches: tuple[Piece, ...]


def cut_at_frames(table: SeekTable, run: Run, blocks: int) -> Run:
    """The beginning of a run: about so many blocks, up to a border of frames (its shared block left out)."""
    first, count = run
    if count <= blocks + blocks // 2:
        return run
    border = table.border_from((first + blocks) * BLOCK)
    stop = border // BLOCK
    return (first, stop - first) if first < stop < first + count else run


def frame_run(table: SeekTable, edges: Edges, file: FileKey, run: Run, size: int, room: Run) -> Framing:
    """What to fetch for a run of blocks, and which blocks it fills: the run, and what else its frames hold whole.

    `room` is the run of blocks that may be filled (others are on their way); it contains `run`.
    """
    start, stop = run[0] * BLOCK, min((run[0] + run[1]) * BLOCK, size)
    head = edges.after(file, start)[: stop - start]
    tail = edges.before(file, stop)[-(stop - start - len(head)) :] if len(head) < stop - start else b""
    frames = tuple(table.frames_for(start + len(head), stop - len(tail)))
    if not frames:
        pieces = [(start, head), (stop - len(tail), tail)]
        span = start, (run[0] + run[1]) * BLOCK
        return Framing(span, span, (), tuple(piece for piece in pieces if piece[1]))
    low, high = frames[0].raw_off, frames[-1].raw_off + frames[-1].raw_len
    lowest, highest = room[0] * BLOCK, min((room[0] + room[1]) * BLOCK, size)
    patches: list[Piece] = []
    if low >= start:  # a border of frames lies in the first block, or at its start
        first = run[0]
        if low > start:
            patches.append((start, head[: low - start]))
    else:
        first = -(-low // BLOCK)
        known = edges.before(file, low)
        if low % BLOCK and len(known) == low % BLOCK:
            first -= 1
            patches.append((low - len(known), known))
        if first * BLOCK < lowest:
            first, patches = room[0], []
    if high <= stop:
        end = stop
        if high < stop:
            patches.append((high, tail[len(tail) - (stop - high) :]))
    else:
        end = size if high == size else high // BLOCK * BLOCK
        known = edges.after(file, high)
        whole = min(high // BLOCK * BLOCK + BLOCK, size)
        if end < high and high + len(known) == whole and whole <= highest:
            end = whole
            patches.append((high, known))
        end = min(end, highest)
    span = first * BLOCK, -(-end // BLOCK) * BLOCK
    # every block that these frames touch
    covers = min(span[0], low // BLOCK * BLOCK), max(span[1], -(-high // BLOCK) * BLOCK)
    return Framing(span, covers, frames, tuple(patches))


def frame_sample(table: SeekTable, span: ByteRange, size: int, room: Run) -> Framing:
    """What to fetch for a range that is cut where samples begin and end: their frames, and what else these hold whole.

    `room` is the run of blocks that may be filled beside it.
    """
    start, stop = span
    frames = tuple(table.frames_for(start, stop))
    low, high = frames[0].raw_off, frames[-1].raw_off + frames[-1].raw_len
    first, end = start // BLOCK * BLOCK, min(-(-stop // BLOCK) * BLOCK, size)
    if low <= first and room[0] * BLOCK <= first:
        start = max(-(-low // BLOCK) * BLOCK, room[0] * BLOCK)
    if high >= end and min((room[0] + room[1]) * BLOCK, size) >= end:
        stop = min(high if high == size else high // BLOCK * BLOCK, min((room[0] + room[1]) * BLOCK, size))
    return Framing((start, stop), (low, high), frames, ())
