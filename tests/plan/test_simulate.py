"""The planner in virtual time: what a run may never do, what it must reach, and that thinning changes little."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdsfs.plan.bounds import live_window
from mdsfs.plan.forecast import forecast
from mdsfs.plan.outcome import Prices
from mdsfs.plan.shape import Shape
from mdsfs.plan.simulate import Host, Run, simulate
from mdsfs.plan.workload import Stored, Workload
from streaming.order import OrderSpec, StreamSpec, World, epoch_order

KIB, MIB = 1 << 10, 1 << 20


def workload(
    shards: int = 32,
    samples: int = 32,
    size: int = 64 * KIB,
    *,
    block: int = 64,
    batch: int = 16,
    world: World | None = None,
    stored: Stored | None = None,
    ratio: float = 1.0,
    whole: bool = False,
) -> Workload:
    """A dataset of equal shards under a block shuffle."""
    counts = np.full(shards, samples, np.int64)
    sizes = counts * size
    first = np.concatenate([[0], np.cumsum(counts)])
    shape = Shape(first, sizes, (sizes * ratio).astype(np.int64), np.full(shards, whole))
    world = world or World(1, 1, 1, 0)
    nodes = world.num_nodes
    spec = OrderSpec((StreamSpec(counts, int(counts.sum())),), batch, nodes, shuffle=True, block_size=block)
    return Workload(shape, stored or Stored(), spec, world)


def host(limit: int, *, step: float = 0.02, bandwidth: float = 125e6, latency: float = 0.01) -> Host:
    """A gigabit, ten milliseconds away."""
    return Host(limit, bandwidth, latency, step)


def run(load: Workload, at: Host, epochs: int = 3, steps: int | None = None) -> Run:
    """So many epochs of it, or of their first steps."""
    return simulate(load, at, [load.order(number)[:steps] for number in range(epochs + 1)])


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2))
@settings(max_examples=20)
def test_a_host_reads_what_its_ranks_read(nodes: int, ranks: int, workers: int, epoch: int) -> None:
    """Step by step the simulated host reads what all ranks of node 0 read in that step of the real order."""
    world = World(nodes, ranks, workers, 0)
    steps = 6 * workers
    load = workload(nodes * ranks * steps, 4, block=16, batch=4, world=world)
    real = epoch_order(load.spec, world, epoch)[0]  # [ranks][workers][batches][batch size]
    merged = real.transpose(2, 1, 0, 3).reshape(steps, -1)
    assert np.array_equal(np.sort(load.order(epoch), axis=1), np.sort(merged, axis=1))


@given(st.floats(0.1, 1.3), st.sampled_from([32, 64, 100_000]), st.floats(0.0, 0.03))
@settings(max_examples=10)
def test_what_no_run_may_do(share: float, block: int, step: float) -> None:
    """No epoch is below the bound nor faster than computing and link allow; the limit is kept; nothing is lost."""
    load = workload(16, 16, block=block)
    total = int(load.shape.sizes.sum())
    limit = int(total * share)
    found = run(load, host(limit, step=step), 2)
    assert found.peak <= limit
    fetched = 0.0
    for number, epoch in enumerate(found.epochs):
        fetched += epoch.bytes
        assert epoch.seconds >= len(epoch.stalls) * step - 1e-9
        assert fetched >= total + number * max(0, total - limit)
        assert np.all(np.diff(epoch.arrived) >= 0)
        assert (epoch.stalls >= 0).all()
    assert sum(epoch.seconds for epoch in found.epochs) >= (fetched - limit) / 125e6


def test_a_steady_epoch_is_near_the_bound() -> None:
    """Above the live window whole shards come within a fifth of U - C at half the data; C ≥ U fetches nothing more."""
    load = workload(128, 8, block=32)
    total = int(load.shape.sizes.sum())
    half = run(load, host(total // 2))
    assert half.regime == "shards"
    assert sum(epoch.bytes for epoch in half.epochs[1:]) <= 1.2 * 2 * (total - total // 2)
    fits = run(load, host(total + 4 * MIB))
    assert fits.epochs[0].bytes <= 1.02 * total
    assert [epoch.bytes for epoch in fits.epochs[1:]] == [0, 0]


def test_below_the_live_window_ranges_are_fetched() -> None:
    """A twentieth of the data under a full shuffle: little more than the samples' own bytes each epoch."""
    load = workload(32, 32, block=1 << 20)
    total = int(load.shape.sizes.sum())
    found = run(load, host(total // 20, step=0.05), 2)
    assert found.regime == "ranges"
    assert found.changes_at is not None
    assert found.changes_at > total // 20
    assert all(epoch.bytes <= 1.2 * total for epoch in found.epochs)


def test_the_first_batch_does_not_wait_for_shards() -> None:
    """With shards of 64 MiB: three latencies, the samples' bytes and a fifth of a millisecond each, and half of it."""
    load = workload(16, 1024, block=1 << 20, batch=8)
    found = run(load, host(128 * MIB, latency=0.05), 1, steps=32)
    assert found.epochs[0].stalls[0] <= 1.5 * (3 * 0.05 + 8 * (64 * KIB / 125e6 + 0.0002))


def test_a_link_that_suffices() -> None:
    """Where the bytes of every step fit into its time, nobody waits after the first epoch's start."""
    load = workload(64, 16, block=32)
    total = int(load.shape.sizes.sum())
    step = 1.5 * total / 125e6 / 64
    found = run(load, host(total // 2, step=step))
    for epoch in found.epochs[1:]:
        assert epoch.stalls.sum() <= 0.05 * epoch.seconds


def test_a_link_that_suffices_for_ranges() -> None:
    """The same below the live window, where heads must come before samples: nothing that waits for one is forgotten."""
    load = workload(256, 16, block=1 << 20, batch=32)
    total = int(load.shape.sizes.sum())
    step = 2 * total / 125e6 / 128
    found = run(load, host(total * 3 // 10, step=step), 2)
    assert found.regime == "ranges"
    assert sum(epoch.stalls[1:].sum() for epoch in found.epochs) <= 0.15 * sum(epoch.seconds for epoch in found.epochs)


def test_compressed_data() -> None:
    """Bytes that come are stored bytes: of whole objects their size, of frames those that are touched."""
    whole = workload(ratio=0.5, whole=True)
    total = int(whole.shape.stored.sum())
    first = run(whole, host(128 * MIB), 1).epochs[0]
    assert total <= first.bytes <= 1.01 * total
    frames = workload(16, 64, ratio=0.5, block=1 << 20, stored=Stored(frame=256 * KIB))
    small = run(frames, host(8 * MIB), 1).epochs[0]
    assert small.bytes > 2 * int(frames.shape.stored.sum())  # four samples a frame, of which mostly one is wanted


def test_a_cache_smaller_than_a_shard() -> None:
    """Ends, whatever it costs."""
    load = workload(8, 64, block=256, whole=True)
    found = run(load, host(2 * MIB), 1)
    assert found.epochs[0].bytes >= int(load.shape.sizes.sum())


def test_thinning() -> None:
    """A quarter of the shards tell the bytes within a tenth, and the live window to a step."""
    load = workload(1024, 4, block=128, batch=32)
    thin = load.thinned(1024)
    assert 0.2 < thin.share < 0.3
    ids = thin.order(0)
    assert len(ids) == len(load.order(0))
    assert len(np.unique(ids[ids >= 0])) == thin.shape.samples == int((ids >= 0).sum())
    limit = int(load.shape.sizes.sum()) // 2
    all_of_it, part = (run(each, host(limit, latency=0.002), 2).epochs[1] for each in (load, thin))
    assert part.bytes == pytest.approx(all_of_it.bytes, rel=0.1)
    whole = load.order(0)
    window = live_window(load.shape.shard_of(whole[whole >= 0]), load.shape.sizes)
    assert load.read(0)[1] == thin.read(0)[1] >= window
    assert thin.read(0)[1] <= window + 32 * load.shape.sizes[0]
    assert thin.read(0)[2] == pytest.approx(thin.share)


def test_the_forecast() -> None:
    """Bounds beside every epoch, cache sizes from nothing to everything, and costs at the given prices."""
    load = workload(64, 16, block=32, stored=Stored(index=1 * MIB))
    total = int(load.shape.sizes.sum())
    found = forecast(load, host(total // 2 + MIB), 2, Prices(1.0, 0.0), {"cache_limit": total // 2 + MIB})
    assert [epoch.least for epoch in found.epochs] == [total, total // 2]
    assert found.epochs[0].cost == pytest.approx(found.epochs[0].bytes / 1e9, rel=1e-6)
    assert found.epochs[1].best >= found.epochs[1].least
    sizes = found.sizes
    assert sizes[0].limit < total / 10
    assert sizes[-1].bytes == 0
    assert [point.least for point in sizes] == sorted((point.least for point in sizes), reverse=True)
    assert {point.regime for point in sizes} == {"ranges", "shards"}
    assert sizes[0].shards > 2 * sizes[0].bytes  # whole shards below the live window
