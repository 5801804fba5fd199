"""Our order and mosaicml-streaming's side by side, a few hundred random runs; `scripts/compat` does more."""

from __future__ import annotations

import pytest

from tests.order.compat import PYTHON, compare


@pytest.mark.peer
@pytest.mark.skipif(not PYTHON.exists(), reason="mosaicml-streaming is not installed: run scripts/peer")
def test_random_runs_are_ordered_alike() -> None:
    """No difference, and cases of every batching method and shuffle among those compared."""
    counts, different = compare(seed=7, cases=300, seconds=None)
    assert different == []
    kinds = ("random", "per_stream", "stratified", "device_per_stream", "naive", "py1s", "py2s", "py1br", "py1e")
    assert all(counts[kind] >= 5 for kind in kinds), counts
