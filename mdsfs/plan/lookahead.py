"""What comes next in a job that is not here: from a stretch of its order to fetches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .state import ABSENT, HERE, WANTED, DatasetState, Fetch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from .epoch import Stream
    from .track import Track

__all__ = ["Lot", "look"]

# What a request takes in the cache beside the samples it is for: whole blocks at both ends.
_EDGES = 4096
# Of the bytes of a lot, so much may be fetched beside what is wanted, to save requests.
EXTRA = 0.02
# Slots and ids that are looked at together: neighbours among them can be fetched by one request.
MOST_SLOTS = 64
MOST_IDS = 4096


class Lot:
    """Open positions of a stretch of a job's order, by dataset. `stop`: the key after the stretch."""

    def __init__(self, stop: int, parts: list[tuple[DatasetState, NDArray[np.int64], NDArray[np.int64]]]) -> None:
        self.stop = stop
        self.parts = parts


def look(
    track: Track, streams: Mapping[int, Sequence[Stream]], datasets: Mapping[int, DatasetState], key: int, limit: int
) -> Lot | None:
    """The stretch that begins at `key`, up to about `limit`; None where no known epoch has that key."""
    place = track.place(key)
    if place is None:
        return None
    number, slot = place
    epoch, base = track.epochs[number].epoch, track.bases[number]
    count = min(MOST_SLOTS, max(MOST_IDS // epoch.size, 1), max(-(-(limit - key) // epoch.size), 1), epoch.slots - slot)
    ids = epoch.ids(slot, slot + count)
    at = np.arange(slot * epoch.size, (slot + count) * epoch.size)
    wanted = (ids >= 0) & track.is_open(number, at)
    ids, keys = ids[wanted], at[wanted] + base
    parts = []
    for dataset, its in streams.items():
        state = datasets[dataset]
        found = [_own(ids, keys, stream, state.shape.samples) for stream in its]
        samples = np.concatenate([each[0] for each in found])
        if len(samples):
            parts.append((state, samples, np.concatenate([each[1] for each in found])))
    return Lot(base + (slot + count) * epoch.size, parts)


def _own(
    ids: NDArray[np.int64], keys: NDArray[np.int64], stream: Stream, samples: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    own = ids - stream[1]
    inside = (own >= 0) & (own < min(stream[2], samples))
    return own[inside], keys[inside]


class Namer:
    """Makes fetches of one job; `front`: the key that distances are counted from."""

    def __init__(self, job: str, front: int, gap: int, *, near: bool) -> None:
        self._job, self._front, self._gap, self._near = job, front, gap, near

    def shards(self, state: DatasetState, shards: NDArray[np.int64], keys: NDArray[np.int64]) -> Iterator[Fetch]:
        """The whole of those that are neither here nor on their way."""
        absent = (state.shards[shards] == ABSENT) & ~state.is_complete(shards)
        shards, keys = shards[absent], keys[absent]
        for place in np.unique(shards, return_index=True)[1].tolist():
            shard = int(shards[place])
            size = int(state.shape.sizes[shard] - state.held[shard])
            first, stop = int(state.shape.first[shard]), int(state.shape.first[shard + 1])
            yield self._fetch(state, shard, "shard", first, stop, int(keys[shards == shard].min()), size)

    def samples(self, state: DatasetState, samples: NDArray[np.int64], keys: NDArray[np.int64]) -> Iterator[Fetch]:
        """Samples that are absent: neighbours in one request, and first the heads that say where they are.

        Those whose head is not here yet are noted as waiting for it.
        """
        absent = state.samples[samples] == ABSENT
        samples, keys = samples[absent], keys[absent]
        if not len(samples):
            return
        order = np.lexsort((keys, samples))
        samples, keys = samples[order], keys[order]
        once = np.ones(len(samples), np.bool_)
        once[1:] = samples[1:] != samples[:-1]
        samples, keys = samples[once], keys[once]
        shards = state.shape.shard_of(samples)
        known = state.heads[shards] == HERE
        if not known.all():
            yield from self._heads(state, shards[~known], samples[~known], keys[~known])
            samples, keys, shards = samples[known], keys[known], shards[known]
        if len(samples):
            yield from self._runs(state, shards, samples, keys)

    def _heads(
        self, state: DatasetState, shards: NDArray[np.int64], samples: NDArray[np.int64], keys: NDArray[np.int64]
    ) -> Iterator[Fetch]:
        state.samples[samples] = WANTED
        for shard, sample, key in zip(shards.tolist(), samples.tolist(), keys.tolist(), strict=True):
            state.waiting.setdefault(shard, []).append((self._job, key, sample))
        unknown = state.heads[shards] == ABSENT
        for shard in np.unique(shards[unknown]).tolist():
            key = int(keys[shards == shard].min())
            first, stop = int(state.shape.first[shard]), int(state.shape.first[shard + 1])
            yield self._fetch(state, shard, "head", first, stop, key, state.shape.head_bytes(shard) + _EDGES)

    def _runs(
        self, state: DatasetState, shards: NDArray[np.int64], samples: NDArray[np.int64], keys: NDArray[np.int64]
    ) -> Iterator[Fetch]:
        counts = np.maximum(np.diff(state.shape.first)[shards], 1)
        each = state.shape.sizes[shards] / counts
        apart = self._apart(np.diff(samples) - 1, each)
        cuts = np.flatnonzero(apart | (np.diff(shards) != 0)) + 1
        begins = np.concatenate([[0], cuts])
        first_keys = np.minimum.reduceat(keys, begins)
        ends = np.concatenate([cuts, [len(samples)]])
        for begin, end, key in zip(begins.tolist(), ends.tolist(), first_keys.tolist(), strict=True):
            first, stop = int(samples[begin]), int(samples[end - 1]) + 1
            size = int((stop - first) * each[begin]) + _EDGES
            yield self._fetch(state, int(shards[begin]), "samples", first, stop, key, size)

    def _apart(self, between: NDArray[np.int64], each: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Where what lies between two samples costs more than a request, or all of it too large a part of the bytes."""
        gaps = between * each[1:]
        apart: NDArray[np.bool_] = gaps > self._gap
        spare = EXTRA * float(each.sum())
        ranked = np.argsort(gaps, kind="stable")
        apart[ranked[np.cumsum(gaps[ranked]) > spare]] = True
        return apart

    def _fetch(self, state: DatasetState, shard: int, kind: str, first: int, stop: int, key: int, size: int) -> Fetch:
        distance = max(key - self._front, 0)
        return Fetch(state.number, shard, kind, first, stop, self._job, key, distance, size, self._near)  # type: ignore[arg-type]
