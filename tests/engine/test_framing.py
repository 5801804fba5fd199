"""Which frames a run of blocks needs, and the blocks that frames share: against a model that fetches and fills."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from mdsfs.engine.filling.framing import Edges, Framing, cut_at_frames, frame_run, frame_sample
from streaming.engine.residency import BLOCK
from streaming.mds.seekable import SeekTable, compress_seekable

FILE = (1, 2)


def table_of(ends: list[int]) -> tuple[SeekTable, bytes]:
    """The seek table of random bytes cut at these ends, and the bytes."""
    data = np.random.default_rng(1).bytes(ends[-1])
    stored = compress_seekable(data, np.array([0, *ends]), 1)
    return SeekTable.parse(stored, len(stored), len(data)), data


def filled(framing: Framing, data: bytes, edges: Edges) -> bytes:
    """What a fetcher writes for this framing; it also leaves the edges. Raises where bytes would be missing."""
    size = len(data)
    start, stop = framing.span[0], min(framing.span[1], size)
    found = bytearray(stop - start)
    seen = bytearray(stop - start)
    pieces = [(frame.raw_off, data[frame.raw_off : frame.raw_off + frame.raw_len]) for frame in framing.frames]
    for at, piece in [*pieces, *framing.patches]:
        assert data[at : at + len(piece)] == piece
        low, high = max(at, start), min(at + len(piece), stop)
        if low < high:
            found[low - start : high - start] = piece[low - at : high - at]
            seen[low - start : high - start] = b"\1" * (high - low)
    assert all(seen), "a block would have a hole"
    if framing.frames:
        first, last = framing.frames[0].raw_off, framing.frames[-1].raw_off + framing.frames[-1].raw_len
        inside, rest = min(-(-first // BLOCK) * BLOCK, last), max(last // BLOCK * BLOCK, first)
        if first < inside <= start:
            edges.keep(FILE, first, data[first:inside])
        if stop <= rest < last:
            edges.keep(FILE, rest, data[rest:last])
    return bytes(found)


SMALL = (1, 50, 700, BLOCK, BLOCK + 1, 3 * BLOCK - 5, 20_000)
USUAL = (2 * BLOCK, 3 * BLOCK - 5, 20_000, 256 << 10)


@pytest.mark.parametrize("sizes", [SMALL, USUAL], ids=["small", "usual"])
@pytest.mark.parametrize("seed", range(30))
def test_every_block_is_filled(seed: int, sizes: tuple[int, ...]) -> None:
    """Reading run by run, in any order, fills every block with the right bytes; frames of two blocks come once."""
    draw = random.Random(seed)
    ends, size = [], 0
    for _ in range(draw.randint(1, 30)):
        size += draw.choice(sizes)
        ends.append(size)
    table, data = table_of(ends)
    blocks = -(-size // BLOCK)
    edges = Edges()
    resident: set[int] = set()
    fetched: list[int] = []
    while len(resident) < blocks:
        first = draw.choice([block for block in range(blocks) if block not in resident])
        count = 1
        while count < 5 and first + count < blocks and first + count not in resident:
            count += 1
        framing = frame_run(table, edges, FILE, (first, count), size, (0, blocks))
        start, stop = framing.span
        assert not start % BLOCK
        assert not stop % BLOCK
        assert start <= first * BLOCK
        assert stop >= (first + count) * BLOCK
        assert framing.covers[0] <= start
        assert framing.covers[1] >= stop
        written = filled(framing, data, edges)
        assert written == data[start : start + len(written)]
        fetched.extend(frame.raw_off for frame in framing.frames)
        resident.update(range(start // BLOCK, stop // BLOCK))
    if sizes is USUAL:  # where several borders lie in one block, a frame between two others may be needed again
        assert len(fetched) == len(set(fetched)), "a frame was fetched twice"


def test_a_run_stays_inside_its_room() -> None:
    """Blocks that other flights bring are left to them."""
    table, _ = table_of([10 * BLOCK + 7, 20 * BLOCK + 9])
    framing = frame_run(table, Edges(), FILE, (5, 2), 20 * BLOCK + 9, (4, 4))
    assert framing.span == (4 * BLOCK, 8 * BLOCK)
    assert framing.covers == (0, 11 * BLOCK)


@pytest.mark.parametrize("seed", range(20))
def test_a_sample_needs_its_own_frames_only(seed: int) -> None:
    """No frame beside it comes for the sake of a block, and what else its frames hold whole is filled as well."""
    draw = random.Random(seed)
    ends, size = [0], 0
    for _ in range(20):
        size += draw.choice((2 * BLOCK, 3 * BLOCK - 5, 20_000, 50_001))
        ends.append(size)
    table, data = table_of([*ends[draw.randint(1, 3) :: draw.randint(1, 3)], size])
    blocks = -(-size // BLOCK)
    for start, stop in itertools.pairwise(ends):
        framing = frame_sample(table, (start, stop), size, (0, blocks))
        begin, end = framing.span
        assert list(framing.frames) == table.frames_for(start, stop)
        assert begin == start or (begin < start and begin % BLOCK == 0)
        assert end == stop or (end > stop and (end % BLOCK == 0 or end == size))
        assert filled(framing, data, Edges()) == data[begin:end]
        assert framing.covers == (framing.frames[0].raw_off, sum(framing.frames[-1][2:4]))


def test_a_sample_s_frames_leave_to_others_what_these_bring() -> None:
    """Blocks that other flights lie on are not filled beside it."""
    table, _ = table_of([20 * BLOCK + 9])
    framing = frame_sample(table, (5 * BLOCK + 7, 8 * BLOCK + 7), 20 * BLOCK + 9, (4, 6))
    assert framing.span == (4 * BLOCK, 10 * BLOCK)
    framing = frame_sample(table, (5 * BLOCK + 7, 8 * BLOCK + 7), 20 * BLOCK + 9, (6, 2))
    assert framing.span == (5 * BLOCK + 7, 8 * BLOCK + 7)


def test_long_runs_are_cut_at_a_border_of_frames() -> None:
    """The block that a border lies in belongs to neither side."""
    table, _ = table_of([at * (BLOCK * 3 + 100) for at in range(1, 40)])
    first, count = cut_at_frames(table, (0, 110), 20)
    border = (first + count) * BLOCK
    assert 20 <= count < 25
    assert table.border_from(border) // BLOCK == first + count


def test_edges_are_bounded_and_can_be_forgotten() -> None:
    """The oldest go first; a file's all go at once."""
    edges = Edges(most=2)
    for block in range(3):
        edges.keep(FILE, block * BLOCK + 10, b"abc")
    assert edges.after(FILE, 10) == b""
    assert edges.after(FILE, BLOCK + 10) == b"abc"
    assert edges.before(FILE, 2 * BLOCK + 12) == b"ab"
    edges.forget(FILE)
    assert edges.after(FILE, BLOCK + 10) == b""


def test_touching_edges_are_joined() -> None:
    """Two parts of one block become one; parts with a gap between them do not."""
    edges = Edges()
    edges.keep(FILE, 0, b"ab")
    edges.keep(FILE, 2, b"cd")
    assert edges.after(FILE, 0) == b"abcd"
    edges.keep(FILE, 10, b"x")
    assert edges.after(FILE, 0) == b""
    assert edges.after(FILE, 10) == b"x"
