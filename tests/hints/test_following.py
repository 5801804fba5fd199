"""Where readers are, from the shards they open: pure, against the readers' own count."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdsfs.mount.following import Follower
from mdsfs.mount.ordering import OrderOptions, parse_order
from streaming.order.epoch import epoch_order
from streaming.order.spec import OrderSpec, StreamSpec
from streaming.order.world import World

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHARDS, PER_SHARD = 50, 20
FIRST = np.arange(SHARDS + 1, dtype=np.int64) * PER_SHARD


def orders(epoch: int, ranks: int = 2, workers: int = 2, drop: int = 0, **options: Any) -> NDArray[np.int64]:
    """[ranks][workers][batches][batch size]"""
    sizes = np.full(SHARDS, PER_SHARD, np.int64)
    arguments: dict[str, Any] = {"batch_size": 4, "canonical_nodes": 1, "shuffle": True, **options}
    spec = OrderSpec((StreamSpec(sizes, SHARDS * PER_SHARD),), **arguments)
    return epoch_order(spec, World(1, ranks, workers, 0), epoch, drop)[0]


def shards_of(order: NDArray[np.int64], rank: int, worker: int) -> list[int]:
    """What a reader of a lane opens."""
    ids = order[rank, worker].reshape(-1)
    return (ids[ids >= 0] // PER_SHARD).tolist()  # type: ignore[no-any-return]


def located(follower: Follower, thread: int, opened: list[int]) -> list[tuple[int, int, int, int]]:
    """Where the follower says that a thread is, after each open it can say it for."""
    spots = (follower.seen(thread, shard) for shard in opened)
    return [(spot.epoch, spot.rank, spot.worker, spot.at) for spot in spots if spot is not None]


def test_from_the_beginning() -> None:
    """All lanes beside each other are found after a few opens, and stay so to the end and in the next epoch."""
    follower = Follower(FIRST)
    for epoch in (0, 1):
        follower.learn(epoch, orders(epoch))
    lanes = {10 * rank + worker: (rank, worker) for rank in range(2) for worker in range(2)}
    for epoch in (0, 1):
        opened = {thread: shards_of(orders(epoch), *lane) for thread, lane in lanes.items()}
        for at in range(min(map(len, opened.values()))):
            for thread, lane in lanes.items():
                spot = follower.seen(thread, opened[thread][at])
                if at >= 8:
                    assert spot is not None
                    assert (spot.epoch, spot.rank, spot.worker, spot.at) == (epoch, *lane, at + 1)
    assert follower.batch(follower.spots[0]) >= follower.batches(1) - 1


def test_in_the_middle() -> None:
    """A run that was resumed: found by looking everywhere, and followed from there."""
    follower = Follower(FIRST)
    follower.learn(0, orders(0))
    rest = shards_of(orders(0, drop=25 * 16), 1, 0)
    assert located(follower, 5, rest[:8]) == []
    (opened,) = follower.lost().values()
    spot = follower.find(opened)
    assert spot is not None
    # it has read on while it was looked for
    follower.seen(5, rest[8])
    follower.place(5, spot, opened)
    lane = orders(0)[spot.rank, spot.worker].reshape(-1)
    assert (lane[: follower.spots[0].at][-9:] // PER_SHARD).tolist() == rest[:9]
    assert spot.rank == 1
    follower.seen(5, rest[9])
    assert follower.spots[0].at - spot.at == 0
    assert (lane[follower.spots[0].at - 1]) // PER_SHARD == rest[9]


def test_a_reader_of_something_else() -> None:
    """A copy of all shards, a reader with another seed: nobody is found, and they are looked for ever less."""
    follower = Follower(FIRST)
    follower.learn(0, orders(0))
    for opened in (list(range(SHARDS)), shards_of(orders(0, seed=5), 0, 0)):
        follower = Follower(FIRST)
        follower.learn(0, orders(0))
        looked = 0
        for shard in opened:
            follower.seen(1, shard)
            for thread, last in follower.lost().items():
                looked += 1
                assert follower.find(last) is None
                follower.missed(thread)
        assert follower.is_lost
        assert follower.spots == []
        assert looked <= 5


def test_another_process_takes_over() -> None:
    """The run is started again: its readers have other threads, and take their lanes from those that are gone."""
    follower = Follower(FIRST)
    follower.learn(0, orders(0))
    opened = shards_of(orders(0), 0, 1)
    located(follower, 1, opened[:150])
    assert located(follower, 2, opened[:20])[-1] == (0, 0, 1, 20)
    assert len(follower.spots) == 1


def test_opens_that_were_never_seen() -> None:
    """A few that the page cache has hidden do not matter; the rest brings the reader back to its place."""
    follower = Follower(FIRST)
    follower.learn(0, orders(0))
    opened = shards_of(orders(0), 0, 0)
    rng = np.random.default_rng(1)
    located(follower, 1, opened[:10])
    seen = [at for at in range(10, len(opened)) if rng.random() > 0.1]
    found = located(follower, 1, [opened[at] for at in seen])
    right = sum(at + 1 == place[-1] for at, place in zip(seen, found, strict=False))
    assert right > 0.8 * len(seen)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, SHARDS - 1)), max_size=300))
def test_noise(events: list[tuple[int, int]]) -> None:
    """Whatever is opened: a place inside the order, or none."""
    follower = Follower(FIRST)
    follower.learn(0, orders(0))
    for thread, shard in events:
        spot = follower.seen(thread, shard)
        if spot is not None:
            assert 0 <= follower.batch(spot) <= follower.batches(0)
        for lost, last in follower.lost().items():
            found = follower.find(last)
            follower.missed(lost) if found is None else follower.place(lost, found, last)
    assert len({(spot.rank, spot.worker) for spot in follower.spots}) == len(follower.spots)


def test_an_order_in_words() -> None:
    """Short names and those of mosaicml-streaming; defaults are the reader's."""
    text = (
        "shuffle=true, algo=py1br,shuffle_seed=5,batch_size=32,num_canonical_nodes=2,workers=8,ranks=4,dataset=/train/"
    )
    found = parse_order(text)
    assert found == OrderOptions(
        32, shuffle=True, algo="py1br", seed=5, canonical_nodes=2, workers=8, ranks=4, dataset="train"
    )
    hint = found.hint("job", 3, np.full(SHARDS, PER_SHARD, np.int64))
    assert (hint.streams[0].choose, hint.world.local_ranks, hint.order["block_size"]) == (1000, 4, 2_000_000)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "batch_size"),
        ("shuffle=true", "batch_size"),
        ("batch_size=0", "whole number from 1"),
        ("batch_size=many", "whole number"),
        ("batch_size=4,algo=magic", "one of naive"),
        ("batch_size=4,shuffle=maybe", "true or false"),
        ("batch_size=4,colour=red", "no such part"),
        ("batch_size=4,nodes=2,node=2", "count from 0"),
    ],
)
def test_an_order_that_is_none(text: str, complaint: str) -> None:
    """Said in one line."""
    with pytest.raises(ValueError, match=complaint):
        parse_order(text)
