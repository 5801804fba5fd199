"""The shuffles: which sample stands at each position of an epoch.

All are permutations of the ids of `shard_sizes`; those but `naive` keep a canonical node to its own shards. What they
draw, and in which sequence, is the format: two runs must agree to the last draw. `block_size` counts samples.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from streaming.order.spans import Spans, grouped

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Shuffle = Callable[[NDArray[np.int64], int, int, int, int], NDArray[np.int64]]

__all__ = ["ALGORITHMS", "get_shuffle"]


def get_shuffle(
    algo: str,
    shard_sizes: NDArray[np.int64],
    num_canonical_nodes: int,
    seed: int,
    epoch: int,
    block_size: int = 1 << 18,
) -> NDArray[np.int64]:
    """The id at each position, int64; KeyError for an unknown `algo`."""
    return ALGORITHMS[algo](shard_sizes, num_canonical_nodes, seed, epoch, block_size)


def naive(
    shard_sizes: NDArray[np.int64], num_canonical_nodes: int, seed: int, epoch: int, block_size: int = 1 << 18
) -> NDArray[np.int64]:
    """All samples together; any node reads any shard."""
    return np.random.default_rng(seed + epoch).permutation(int(np.sum(shard_sizes)))


def py1s(
    shard_sizes: NDArray[np.int64], num_canonical_nodes: int, seed: int, epoch: int, block_size: int = 1 << 18
) -> NDArray[np.int64]:
    """Shards in random order, samples within each shard."""
    groups, rng = grouped(shard_sizes, num_canonical_nodes, seed, epoch)
    ids = np.empty(int(np.sum(shard_sizes)), np.int64)
    at = 0
    for group in groups:
        at += _fill(ids[at:], group, rng)
    return ids


def py2s(
    shard_sizes: NDArray[np.int64], num_canonical_nodes: int, seed: int, epoch: int, block_size: int = 1 << 18
) -> NDArray[np.int64]:
    """As py1s, with the samples of each shard shuffled before shards are cut at canonical nodes, and again after."""
    sizes = np.asarray(shard_sizes, np.int64)
    fixed = np.random.default_rng(seed)
    spans = Spans(np.cumsum(sizes) - sizes, sizes).shuffled(fixed)
    scattered = np.empty(spans.total, np.int64)
    _fill(scattered, spans, fixed)
    rng = np.random.default_rng(seed + epoch)
    ids = np.empty_like(scattered)
    at = 0
    for group in Spans(np.cumsum(spans.sizes) - spans.sizes, spans.sizes).split(num_canonical_nodes):
        for begin, size in group.shuffled(rng):
            piece = ids[at : at + size]
            piece[:] = scattered[begin : begin + size]
            rng.shuffle(piece)
            at += size
    return ids


def py1b(
    shard_sizes: NDArray[np.int64], num_canonical_nodes: int, seed: int, epoch: int, block_size: int = 1 << 18
) -> NDArray[np.int64]:
    """Fixed blocks of a canonical node's sequence of shards (0.9.1 and before)."""
    groups, rng = grouped(shard_sizes, num_canonical_nodes, seed, epoch)
    ids = np.empty(int(np.sum(shard_sizes)), np.int64)
    at = 0
    for group in groups:
        part = ids[at : at + _fill(ids[at:], group)]
        for start in range(0, len(part), block_size):
            rng.shuffle(part[start : start + block_size])
        at += len(part)
    return ids


def py1br(
    shard_sizes: NDArray[np.int64], num_canonical_nodes: int, seed: int, epoch: int, block_size: int = 1 << 18
) -> NDArray[np.int64]:
    """Blocks of random sizes, staggered from node to node so that nodes do not ask for new shards all at once."""
    groups, rng = grouped(shard_sizes, num_canonical_nodes, seed, epoch)
    low, high = int(0.75 * block_size), int(1.25 * block_size)
    ids = np.empty(int(np.sum(shard_sizes)), np.int64)
    stagger = rng.integers(0, low, (num_canonical_nodes,)).tolist()
    at = 0
    for group, behind in zip(groups, stagger, strict=True):
        part = ids[at : at + _fill(ids[at:], group)]
        for start, stop in _blocks(len(part), behind, low, high, rng):
            rng.shuffle(part[start:stop])
        at += len(part)
    return ids


def _blocks(length: int, behind: int, low: int, high: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    # All sizes are drawn before the first block is shuffled. Neighbouring blocks overlap: the end counts what the
    # blocks hold, so that after a first block cut short by the stagger the others start before it.
    blocks = []
    end = 0
    while end < length:
        size = int(rng.integers(low, high))
        start, stop = max(end - behind, 0), min(end + size - behind, length)
        blocks.append((start, stop))
        end += stop - start
    return blocks


def py1e(
    shard_sizes: NDArray[np.int64], num_canonical_nodes: int, seed: int, epoch: int, block_size: int = 1 << 18
) -> NDArray[np.int64]:
    """Each sample moved by a random distance within a block around its shard: shards come and go evenly."""
    groups, rng = grouped(shard_sizes, num_canonical_nodes, seed, epoch)
    low, high = int(0.75 * block_size), int(1.25 * block_size)
    ids = np.empty(int(np.sum(shard_sizes)), np.int64)
    at, narrow = 0, False
    for group in groups:
        length = _fill(ids[at:], group, rng)
        if not length:
            raise ValueError(
                "The number of samples assigned to a canonical node is 0. This very likely indicates that the number "
                "of samples in this stream is less than the number of canonical nodes, which is "
                f"{num_canonical_nodes}. Please check your index.json file and ensure that your dataset has been "
                "written out correctly. If this was intended, reduce num_canonical_nodes."
            )
        part = ids[at : at + length]
        moved, is_narrow = _moved(group, length, low, high, rng)
        narrow |= is_narrow
        # exactly this sort: another one would order equal positions differently
        part[:] = part[np.argsort(moved)]
        at += length
    if narrow:
        warnings.warn(
            "Shuffle block size was smaller than shard size for some shards. This will result in these shards not "
            "being shuffled with other shards. Set shuffle_block_size to a larger value for a higher quality shuffle.",
            stacklevel=3,
        )
    return ids


def _moved(
    group: Spans, length: int, low: int, high: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], bool]:
    places = np.arange(length, dtype=np.float64)
    at, narrow = 0, False
    for _, size in group:
        reach = (int(rng.integers(low, high)) - size) / 2
        narrow |= reach < 0
        reach = max(reach, 0)
        places[at : at + size] += rng.uniform(max(-reach, -at), min(reach, length - at - size), size)
        at += size
    return places, narrow


def _fill(out: NDArray[np.int64], spans: Spans, rng: np.random.Generator | None = None) -> int:
    """Write the spans' ids one after the other, each span shuffled by `rng` if given; how many they were."""
    at = 0
    for begin, size in spans:
        piece = out[at : at + size]
        piece[:] = np.arange(begin, begin + size)
        if rng is not None:
            rng.shuffle(piece)
        at += size
    return at


ALGORITHMS: dict[str, Shuffle] = {
    "naive": naive,
    "py1b": py1b,
    "py1br": py1br,
    "py1e": py1e,
    "py1s": py1s,
    "py2s": py2s,
}
