"""The ledger against a model of a few lines, and its figures one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mdsfs.engine.cache.ledger import BLOCK, Ledger, charge, chunk_blocks

FILES = 4
LIMIT = 200


class LedgerAgainstModel(RuleBasedStateMachine):
    """Any sequence of calls leaves the same sums as counting blocks in dicts."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(LIMIT * BLOCK)
        self.ledger.add_dataset(1, np.zeros(FILES, np.int64), np.array([1, 1, 2, 3]))
        self.resident = dict.fromkeys(range(FILES), 0)
        self.reserved = dict.fromkeys(range(FILES), 0)
        self.fixed: dict[str, int] = {}
        self.holds: dict[tuple[int, int, int], int] = {}

    @rule(file=st.integers(0, FILES - 1), blocks=st.integers(1, 150))
    def reserve(self, file: int, blocks: int) -> None:
        """Room is given exactly when it suffices."""
        before = self.total()
        self.reserved[file] += blocks
        fits = self.total() <= LIMIT
        short = self.ledger.shortfall(1, file, blocks)
        assert short == max(0, self.total() - before - (LIMIT - before))
        assert self.ledger.try_reserve(1, file, blocks) is fits
        if not fits:
            self.reserved[file] -= blocks

    @rule(file=st.integers(0, FILES - 1), share=st.floats(0, 1))
    def commit(self, file: int, share: float) -> None:
        """Reserved becomes resident."""
        blocks = int(self.reserved[file] * share)
        self.ledger.commit(1, file, blocks)
        self.reserved[file] -= blocks
        self.resident[file] += blocks

    @rule(file=st.integers(0, FILES - 1), share=st.floats(0, 1))
    def withdraw(self, file: int, share: float) -> None:
        """Resident becomes reserved again."""
        blocks = int(self.resident[file] * share)
        self.ledger.commit(1, file, -blocks)
        self.resident[file] -= blocks
        self.reserved[file] += blocks

    @rule(file=st.integers(0, FILES - 1), share=st.floats(0, 1))
    def cancel(self, file: int, share: float) -> None:
        """Reserved is given back."""
        blocks = int(self.reserved[file] * share)
        self.ledger.cancel(1, file, blocks)
        self.reserved[file] -= blocks

    @rule(file=st.integers(0, FILES - 1), share=st.floats(0, 1))
    def release(self, file: int, share: float) -> None:
        """Resident is given back."""
        blocks = int(self.resident[file] * share)
        self.ledger.release(1, file, blocks)
        self.resident[file] -= blocks

    @rule(name=st.sampled_from("ab"), blocks=st.integers(0, 20))
    def fix(self, name: str, blocks: int) -> None:
        """A fixed charge is set or replaced, as long as it fits."""
        if self.total() - self.fixed.get(name, 0) + blocks <= LIMIT:
            self.ledger.set_fixed(name, blocks)
            self.fixed[name] = blocks

    @rule(file=st.integers(0, FILES - 1))
    def hold(self, file: int) -> None:
        """Holds are counted."""
        self.ledger.hold([(1, file, 0)])
        self.holds[1, file, 0] = self.holds.get((1, file, 0), 0) + 1

    @rule()
    def unhold(self) -> None:
        """The last one of a chunk is told as such."""
        if self.holds:
            chunk = next(iter(self.holds))
            self.holds[chunk] -= 1
            assert self.ledger.unhold([chunk]) == ([] if self.holds[chunk] else [chunk])
            if not self.holds[chunk]:
                del self.holds[chunk]

    def total(self) -> int:
        """What everything costs."""
        pages = [1, 1, 2, 3]
        files = sum(charge(self.resident[n] + self.reserved[n], pages[n]) for n in range(FILES))
        return files + sum(self.fixed.values())

    @invariant()
    def sums_agree(self) -> None:
        """All sums are the model's, and the limit holds."""
        found = self.ledger.statistics()
        assert found.used == self.total() <= found.limit == LIMIT
        assert found.resident == sum(self.resident.values())
        assert found.reserved == sum(self.reserved.values())
        assert found.fixed == sum(self.fixed.values())
        assert found.held_chunks == len(self.holds)
        assert all(self.ledger.is_held((1, n, 0)) is ((1, n, 0) in self.holds) for n in range(FILES))
        assert list(self.ledger.files_with_blocks(1)) == [n for n in range(FILES) if self.resident[n]]


TestLedgerAgainstModel = LedgerAgainstModel.TestCase
TestLedgerAgainstModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_adding_a_dataset_charges_what_is_resident_and_removing_it_gives_all_back() -> None:
    """The sums of a whole table are those of its files."""
    ledger = Ledger(1 << 30)
    resident, pages = np.array([0, 1, 300, 40000]), np.array([1, 1, 1, 2])
    ledger.add_dataset(7, resident, pages)
    assert ledger.used == sum(charge(int(n), int(p)) for n, p in zip(resident, pages, strict=True))
    assert ledger.dataset_resident(7) == ledger.resident == 40301
    ledger.remove_dataset(7)
    assert (ledger.used, ledger.resident, ledger.reserved) == (0, 0, 0)


def test_a_dataset_with_reservations_cannot_be_removed() -> None:
    """A fill under way keeps its dataset."""
    ledger = Ledger(1 << 20)
    ledger.add_dataset(1, np.zeros(1, np.int64), np.ones(1, np.int64))
    assert ledger.try_reserve(1, 0, 3)
    with pytest.raises(ValueError, match="reservations"):
        ledger.remove_dataset(1)


def test_more_blocks_cannot_leave_than_came() -> None:
    """An account below zero is a mistake of ours, and says so."""
    ledger = Ledger(1 << 20)
    ledger.add_dataset(1, np.zeros(1, np.int64), np.ones(1, np.int64))
    with pytest.raises(ValueError, match="would have -1"):
        ledger.release(1, 0, 1)


@pytest.mark.parametrize(
    ("blocks", "pages", "cost"), [(0, 1, 0), (1, 1, 4), (128, 1, 131), (129, 1, 133), (2, 9, 10), (50, 9, 61)]
)
def test_a_file_costs_its_blocks_and_what_remembers_them(blocks: int, pages: int, cost: int) -> None:
    """Blocks, one per 128 for the extent tree, one for its record, and the bitmap's pages that it can have touched."""
    assert charge(blocks, pages) == cost


def test_a_filesystem_in_memory_spends_no_blocks_on_remembering() -> None:
    """There a file costs its blocks and its bitmaps' pages, one by one as in the sum over a dataset."""
    ledger = Ledger(1 << 30, trees=False)
    ledger.add_dataset(7, np.array([0, 1, 300, 40000]), np.array([1, 1, 1, 9]))
    assert ledger.used == 1 + 1 + 300 + 1 + 40000 + 9
    assert ledger.try_reserve(7, 0, 5)
    assert ledger.used == 40312 + 5 + 1
    assert charge(5, 1, trees=False) == 6


@pytest.mark.parametrize(
    ("limit", "size"),
    [(2 << 20, 64 << 10), (5 << 20, 64 << 10), (64 << 20, 1 << 20), (64 << 30, 1 << 20), (1 << 40, 16 << 20)],
)
def test_chunks_fit_the_cache(limit: int, size: int) -> None:
    """A small cache has dozens of chunks, a huge one not more than the policy can remember."""
    assert chunk_blocks(limit) * BLOCK == size


def test_repr_tells_the_state() -> None:
    """One line, for logs and failures."""
    assert repr(Ledger(40960)) == "Ledger(0 of 10 blocks: 0 resident, 0 reserved, 0 fixed, 0 chunks held)"
