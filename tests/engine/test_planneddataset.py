"""Where samples lie in a file, and which bytes are fetched for some of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mdsfs.engine.planning.planneddataset import PlannedDataset
from streaming.engine.residency import BLOCK

PLANNED: Any = object.__new__(PlannedDataset)
# Three samples of two blocks and more, two on one block, three of two blocks again.
OFFSETS = np.array([100, 9000, 20_000, 28_700, 28_800, 30_000, 40_000, 50_000, 60_000])


@pytest.mark.parametrize(
    ("first", "stop", "span"),
    [
        (0, 1, (100, 9000)),
        (1, 3, (9000, 28_700)),
        (3, 4, (7 * BLOCK, 8 * BLOCK)),
        (3, 6, (7 * BLOCK, 40_000)),
        (2, 4, (20_000, 8 * BLOCK)),
        (4, 6, (7 * BLOCK, 40_000)),
    ],
)
def test_samples_are_fetched_alone_but_for_those_on_one_block(first: int, stop: int, span: tuple[int, int]) -> None:
    """Of a block of which only a part is there, nobody knows where a sample inside it begins and ends."""
    assert PLANNED.span_of(OFFSETS, first, stop) == span


def test_what_comes_along_is_kept_as_far_as_it_is_wanted() -> None:
    """Samples beside those that were asked for, without a gap, inside what comes."""
    wanted = np.array([1, 0, 1, 1, 1, 1, 0, 1], np.bool_)
    most = (3 * BLOCK, 13 * BLOCK)
    assert PLANNED.widened(OFFSETS, (28_672, 30_000), most, wanted) == (28_672, 40_000)
    assert PLANNED.widened(OFFSETS, (30_000, 40_000), (16_384, 13 * BLOCK), wanted) == (20_000, 40_000)
    assert PLANNED.widened(OFFSETS, (30_000, 40_000), (24_576, 13 * BLOCK), wanted) == (7 * BLOCK, 40_000)
    assert PLANNED.widened(OFFSETS, (40_000, 50_000), (28_672, 59_000), wanted) == (28_672, 50_000)
    assert PLANNED.widened(OFFSETS, (40_000, 50_000), (28_672, 60_000), wanted) == (28_672, 60_000)
    assert PLANNED.widened(OFFSETS, (40_000, 50_000), (40_000, 50_000), wanted) == (40_000, 50_000)
