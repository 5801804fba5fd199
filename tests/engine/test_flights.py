"""What a launch has to bring, and what others bring already: whole blocks but where samples begin and end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from mdsfs.engine.cache.dataset import Dataset
from mdsfs.engine.filling.flights import Flight, absent, uncovered
from mdsfs.engine.filling.flying import Flying
from streaming.engine.residency import BLOCK, ResidencyWriter

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 20 * BLOCK + 9


@pytest.fixture
def dataset(tmp_path: Path) -> Any:
    """One file of which nothing is there."""
    residency = ResidencyWriter.open(tmp_path / "table", [SIZE])
    made: Any = SimpleNamespace(residency=residency, size=lambda _: SIZE)
    made.missing = lambda *run: Dataset.missing(made, *run)
    yield made
    residency.close()


def work(*covers: tuple[int, int]) -> Any:
    """Flights over these bytes."""
    return SimpleNamespace(flights=[SimpleNamespace(covers=each) for each in covers])


def test_a_range_is_brought_in_whole_blocks(dataset: Any) -> None:
    """... up to the end of the file, and without the blocks that are there."""
    dataset.residency.set_blocks(0, 3, 2)
    assert list(absent(dataset, 0, (BLOCK + 7, 6 * BLOCK + 7), cut=False)) == [
        (BLOCK, 3 * BLOCK),
        (5 * BLOCK, 7 * BLOCK),
    ]
    assert list(absent(dataset, 0, (BLOCK + 7, BLOCK + 9), cut=True)) == [(BLOCK, 2 * BLOCK)]


def test_of_its_outer_blocks_a_sample_brings_only_its_own_part(dataset: Any) -> None:
    """Nothing of the samples beside it; nor its own part again."""
    span = (BLOCK + 7, 6 * BLOCK + 7)
    assert list(absent(dataset, 0, span, cut=True)) == [span]
    dataset.residency.set_blocks(0, 1, 2, back=True)
    assert list(absent(dataset, 0, span, cut=True)) == [(3 * BLOCK, 6 * BLOCK + 7)]
    dataset.residency.set_blocks(0, 6, 1, back=True)  # the next one's part: of no use
    assert list(absent(dataset, 0, span, cut=True)) == [(3 * BLOCK, 6 * BLOCK + 7)]
    dataset.residency.set_blocks(0, 5, 2, front=True)
    assert list(absent(dataset, 0, span, cut=True)) == [(3 * BLOCK, 5 * BLOCK)]
    assert list(absent(dataset, 0, span, cut=False)) == [
        (BLOCK, 2 * BLOCK),
        (3 * BLOCK, 5 * BLOCK),
        (6 * BLOCK, 7 * BLOCK),
    ]


def test_two_samples_on_one_block_are_brought_by_two_flights() -> None:
    """They share no byte; but neither brings what the other one does."""
    first, second = (BLOCK + 7, 6 * BLOCK + 7), (6 * BLOCK + 7, 9 * BLOCK + 1)
    assert list(uncovered(work(first), second)) == [second]
    assert list(uncovered(work(first, second), first)) == []
    assert list(uncovered(None, first)) == [first]


def test_who_needs_whole_blocks_brings_those_that_a_sample_brings_in_part() -> None:
    """Around a flight that is cut inside a range the rest is whole blocks."""
    span, cut = (0, 10 * BLOCK), (2 * BLOCK + 7, 6 * BLOCK + 7)
    pieces = list(uncovered(work(cut), span))
    assert pieces == [(0, 3 * BLOCK), (6 * BLOCK, 10 * BLOCK)]
    assert list(uncovered(work(cut, *pieces), span)) == []


def test_what_a_failed_flight_leaves_is_punched_but_where_others_write(dataset: Any) -> None:
    """Not what is there in part, nor what another flight may be writing into; that one clears up after itself."""
    dataset.vacant = lambda *run: Dataset.vacant(dataset, *run)
    flights = [
        Flight(dataset, 0, span, demand=False, visible=True, on_arrival=lambda _: 0)
        for span in ((BLOCK + 7, 6 * BLOCK + 7), (6 * BLOCK + 7, 9 * BLOCK))
    ]
    dataset.working = lambda _: SimpleNamespace(flights=flights)
    leavings: Any = Flying._leavings
    dataset.residency.set_blocks(0, 0, 2, front=True)
    assert leavings(None, flights[0]) == [(2, 4)]
    flights[0].end()
    # from now on nobody begins to write beside it
    assert list(uncovered(SimpleNamespace(flights=flights[:1]), (BLOCK - 5, BLOCK + 7))) == [(BLOCK - 5, BLOCK)]  # type: ignore[arg-type]
    assert leavings(None, flights[1]) == [(6, 3)]
