"""Widening: strays pay little, streams are kept fed, across files too."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mdsfs.engine.filling.widen import GRAIN, MAX_STREAMS, Reach, Widener

MIB = 1 << 20


def widener(*sizes: int, max_window: int = 64 * MIB) -> Widener:
    """Files of these sizes."""
    return Widener(lambda file: sizes[file] if 0 <= file < len(sizes) else None, max_window)


def test_a_stray_read_fetches_its_surroundings_only() -> None:
    """4 KiB in the middle of a shard cost one aligned grain."""
    reach = widener(64 * MIB).reach(1, 0, 32 * MIB + 5000, 4096)
    assert reach == Reach((0, 32 * MIB, 32 * MIB + GRAIN), ())


def test_a_stray_read_at_the_end_stays_inside_the_file() -> None:
    """The surroundings end where the file does."""
    assert widener(100_001).reach(1, 0, 99_000, 5000).demand == (0, 0, 100_001)


def test_random_reads_never_widen() -> None:
    """Reads far from each other stay strays, however many."""
    w = widener(64 * MIB)
    for offset in (40, 3, 25, 11, 60, 1):
        assert w.reach(1, 0, offset * MIB, 4096).ahead == ()


def test_two_adjacent_reads_start_a_stream_of_one_mebibyte() -> None:
    """The second read has the first mebibyte ahead of it fetched."""
    w = widener(64 * MIB)
    w.reach(1, 0, 0, GRAIN)
    reach = w.reach(1, 0, GRAIN, GRAIN)
    assert reach.ahead == ((0, 2 * GRAIN, 2 * GRAIN + MIB),)


def test_a_stream_doubles_until_it_covers_whole_shards() -> None:
    """A reader that asks at the front of what is planned is given twice as much each time, up to the most.

    Large windows end at multiples of 16 MiB.
    """
    w = widener(1 << 40)
    w.reach(1, 0, 0, GRAIN)
    position, windows = GRAIN, []
    for _ in range(10):
        reach = w.reach(1, 0, position, GRAIN)
        position = reach.ahead[-1][2]
        windows.append((position - reach.demand[2]) / MIB)
        assert windows[-1] < 16 or position % (16 * MIB) == 0
    assert [1 << int(window).bit_length() - 1 for window in windows] == [1, 2, 4, 8, 16, 32, 64, 64, 64, 64]


def test_a_stream_runs_on_into_the_next_files_by_name() -> None:
    """What does not fit into a file is taken from those after it."""
    w = widener(MIB, MIB, MIB)
    w.reach(1, 0, 0, GRAIN)
    ahead = w.reach(1, 0, GRAIN, GRAIN).ahead
    assert ahead == ((0, 2 * GRAIN, MIB), (1, 0, 2 * GRAIN))


def test_another_handle_takes_the_stream_over_in_the_next_file() -> None:
    """Who opens the next file and reads on is no stray."""
    w = widener(MIB, 8 * MIB)
    w.reach(1, 0, 0, GRAIN)
    w.reach(1, 0, GRAIN, GRAIN)
    reach = w.reach(2, 1, 2 * GRAIN, GRAIN)
    assert sum(stop - start for _, start, stop in reach.ahead) >= MIB


def test_the_last_file_ends_the_stream() -> None:
    """Nothing is fetched past the last file."""
    w = widener(MIB)
    w.reach(1, 0, 0, GRAIN)
    assert w.reach(1, 0, GRAIN, GRAIN).ahead == ((0, 2 * GRAIN, MIB),)
    assert w.reach(1, 0, MIB - GRAIN, GRAIN).ahead == ()


def test_handles_are_streams_of_their_own() -> None:
    """Two readers of one file do not make one sequential reader."""
    w = widener(64 * MIB)
    w.reach(1, 0, 0, GRAIN)
    assert w.reach(2, 0, GRAIN, GRAIN).ahead == ()


def test_forgotten_handles_start_over() -> None:
    """The memory for streams is bounded; who falls out is a stray again."""
    w = widener(64 * MIB)
    w.reach(0, 0, 0, GRAIN)
    for handle in range(1, MAX_STREAMS + 1):
        w.reach(handle, 0, 32 * MIB, GRAIN)
    assert w.reach(0, 0, GRAIN, GRAIN).ahead == ()


@given(
    sizes=st.lists(st.integers(0, 3 * MIB), min_size=1, max_size=4),
    reads=st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 3 * MIB), st.integers(1, MIB)), max_size=30
    ),
    window=st.integers(4096, 4 * MIB),
)
def test_every_plan_covers_the_read_and_stays_inside_the_files(
    sizes: list[int], reads: list[tuple[int, int, int, int]], window: int
) -> None:
    """Whatever the reads, what is demanded holds what was read, and nothing outside the files is named."""
    w = widener(*sizes, max_window=window)
    for handle, file, offset, length in reads:
        if file >= len(sizes) or offset >= sizes[file]:
            continue
        reach = w.reach(handle, file, offset, length)
        assert reach.demand[0] == file
        assert reach.demand[1] <= offset
        assert reach.demand[2] >= min(offset + length, sizes[file])
        for spanned, start, stop in (reach.demand, *reach.ahead):
            assert 0 <= start < stop <= sizes[spanned]
        assert sum(stop - start for _, start, stop in reach.ahead) <= 2 * window + GRAIN


@given(st.integers(1, 5), st.integers(4096, MIB))
def test_a_sequential_reader_is_never_given_a_byte_ahead_twice(files: int, step: int) -> None:
    """Spans ahead of one stream do not overlap."""
    w = widener(*[2 * MIB] * files)
    seen: set[tuple[int, int]] = set()
    for file in range(files):
        for offset in range(0, 2 * MIB, step):
            for spanned, start, stop in w.reach(1, file, offset, step).ahead:
                for block in range(start // 4096, stop // 4096):
                    assert (spanned, block) not in seen
                    seen.add((spanned, block))
