"""The residency table against sets of blocks, and its bytes as the document says."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streaming.engine.residency import BLOCK, ResidencyReader, ResidencyWriter, bitmap_offsets, blocks_of
from streaming.errors import EngineError

if TYPE_CHECKING:
    from pathlib import Path

SIZES = [1, 0, 4096, 4097, 300_000, 70_000_000]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["set", "clear", "file"]), st.sampled_from([0, 2, 3, 4, 5]), st.integers(0), st.integers(1)
    ),
    max_size=20,
)


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(steps=STEPS)
def test_blocks_come_and_go_like_in_sets(tmp_path: Path, steps: list[tuple[str, int, int, int]]) -> None:
    """Whatever is set and cleared, extents, counts and missing parts are those of a set of block numbers."""
    path = tmp_path / "table"
    path.unlink(missing_ok=True)
    writer = ResidencyWriter.open(path, SIZES)
    model: list[set[int]] = [set() for _ in SIZES]
    for step, file, first, count in steps:
        blocks = -(-SIZES[file] // BLOCK)
        first %= blocks
        count = count % (blocks - first) + 1
        if step == "set":
            writer.set_blocks(file, first, count)
            model[file] |= set(range(first, first + count))
            continue
        before = writer.generation(file)
        writer.begin(file)
        assert writer.generation(file) & 1
        if step == "clear":
            writer.clear_blocks(file, first, count)
            model[file] -= set(range(first, first + count))
        else:
            writer.clear_file(file)
            model[file].clear()
        writer.end(file)
        assert writer.generation(file) == before + 2
    for file, blocks_there in enumerate(model):
        found = {block for first, count in writer.extents(file) for block in range(first, first + count)}
        assert found == blocks_there
        total = -(-SIZES[file] // BLOCK)
        assert writer.count(file, 0, total) == len(blocks_there)
        absent = sum(blocks_of(at, length)[1] for at, length in writer.missing(file, 0, SIZES[file]))
        assert absent == total - len(blocks_there)
        assert writer.is_resident(file, 0, SIZES[file]) == (len(blocks_there) == total)
    assert writer.resident_blocks().tolist() == [len(each) for each in model]
    writer.close()


def test_the_bytes_are_those_of_the_document(tmp_path: Path) -> None:
    """Header, generations, bitmaps: RESIDENCY.md. Changing them means a new version there and in the header."""
    writer = ResidencyWriter.open(tmp_path / "table", [4096 * 70, 5000])
    writer.set_blocks(0, 65, 2)
    writer.set_blocks(0, 5, 63, back=True, front=True)
    writer.clear_blocks(0, 6, 59)
    writer.set_blocks(0, 65, 2)
    writer.set_blocks(1, 0, 2)
    writer.begin(1)
    data = (tmp_path / "table").read_bytes()
    assert struct.unpack_from("<8sIIQQQ", data) == (b"MDSRESID", 2, 4096, 2, 8192, 8192 + 3 * (16 + 8))
    assert struct.unpack_from("<QQ", data, 4096) == (0, 1)
    of_0 = bytes([0] * 8 + [0b110] + [0] * 7), bytes([0] * 8 + [0b1000] + [0] * 7), bytes([0b100000] + [0] * 15)
    assert data[8192:] == b"".join([*of_0, bytes([0b11] + [0] * 23)])
    writer.close()


def test_what_is_cleared_costs_no_room(tmp_path: Path) -> None:
    """Pages of the bitmaps that no file uses any more are given back."""
    writer = ResidencyWriter.open(tmp_path / "table", [1 << 40])
    empty = os.fstat(writer.fd).st_blocks
    writer.set_blocks(0, 1 << 20, 1 << 18)
    assert os.fstat(writer.fd).st_blocks > empty
    writer.begin(0)
    writer.clear_file(0)
    writer.end(0)
    assert os.fstat(writer.fd).st_blocks <= empty + 8  # the page of its generation
    writer.close()


def test_the_end_of_a_file_is_clipped(tmp_path: Path) -> None:
    """Ranges past the end ask for nothing there; missing parts end where the file does."""
    writer = ResidencyWriter.open(tmp_path / "table", [5000])
    assert writer.missing(0, 0, 1 << 20) == [(0, 5000)]
    writer.set_blocks(0, 0, 2)
    assert writer.is_resident(0, 4000, 1 << 20)
    assert writer.is_resident(0, 6000, 10)
    writer.close()


def test_a_table_of_another_dataset_is_refused(tmp_path: Path) -> None:
    """Sizes that do not fit, a cut table, another magic: EngineError, not wrong bits."""
    ResidencyWriter.open(tmp_path / "table", [5000, 6000]).close()
    good = (tmp_path / "table").read_bytes()
    sizes = np.array([5000, 6000])
    ResidencyReader(good, bitmap_offsets(sizes), sizes)
    for wrong in (good[:20], good[:-1], b"X" + good[1:]):
        with pytest.raises(EngineError):
            ResidencyReader(wrong, bitmap_offsets(sizes), sizes)
    with pytest.raises(EngineError):
        ResidencyReader(good, bitmap_offsets(sizes[:1]), sizes[:1])


def test_a_sample_needs_of_its_outer_blocks_its_own_part_only(tmp_path: Path) -> None:
    """What was brought of one sample is there for its reader, for nobody else, and takes room by whole blocks."""
    writer = ResidencyWriter.open(tmp_path / "table", [100 * BLOCK])
    start, stop = 3 * BLOCK + 1000, 6 * BLOCK + 2000
    writer.set_blocks(0, 3, 4, back=True, front=True)
    assert writer.has_sample(0, start, stop - start)
    assert not writer.is_resident(0, start, stop - start)
    assert not writer.has_sample(0, start - 2 * BLOCK, 2 * BLOCK)  # the sample before shares block 3
    assert not writer.has_sample(0, stop, 2 * BLOCK)  # the one after it shares block 6
    assert not writer.has_sample(0, stop, 100)  # lies in block 6 alone
    assert (writer.count(0, 0, 100), writer.occupied(0, 0, 100)) == (2, 4)
    assert list(writer.runs(0, 0, 10, present=True, parts=True)) == writer.extents(0) == [(3, 4)]
    writer.set_blocks(0, 1, 3, front=True)
    assert writer.has_sample(0, BLOCK, start - BLOCK)
    assert not writer.is_resident(0, BLOCK, start - BLOCK)
    assert writer.occupied(0, 0, 100) == 6
    writer.close()


def test_what_was_withdrawn_can_be_restored_part_by_part(tmp_path: Path) -> None:
    """An eviction that comes to nothing leaves every block as it was, and no more of it."""
    writer = ResidencyWriter.open(tmp_path / "table", [100 * BLOCK])
    writer.set_blocks(0, 3, 4, back=True, front=True)
    writer.set_blocks(0, 20, 5, back=True)
    before = [writer.has_sample(0, at, 2 * BLOCK) for at in range(0, 90 * BLOCK, 1000)]
    kept = writer.clear_blocks(0, 2, 30)
    assert writer.occupied(0, 0, 100) == 0
    writer.restore(0, 2, 30, kept)
    assert [writer.has_sample(0, at, 2 * BLOCK) for at in range(0, 90 * BLOCK, 1000)] == before
    writer.close()


def test_room_is_counted_by_blocks_of_which_anything_is_there(tmp_path: Path) -> None:
    """Also after a restart, over files of all sizes, and past bitmaps of which no page exists."""
    rng = np.random.default_rng(5)
    sizes = [*rng.integers(0, 400_000, 3000).tolist(), 1 << 35, 5000, *rng.integers(0, 4 << 20, 500).tolist()]
    writer = ResidencyWriter.open(tmp_path / "table", sizes)
    expected = [0] * len(sizes)
    for file in [*range(5, len(sizes), 7), 3000, 3001]:
        if (blocks := -(-sizes[file] // BLOCK)) >= 4:
            writer.set_blocks(file, 1, 3, back=True, front=True)
            writer.set_blocks(file, 0, 2, front=True)
            expected[file] = 4
            if file == 3000:
                writer.set_blocks(file, blocks - 9, 9)
                expected[file] += 9
    assert writer.resident_blocks().tolist() == expected
    writer.close()
