"""What a simulation models beside the planner: how long bytes take on the link, and what they take in the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .workload import Workload

__all__ = ["Cache", "Wire", "in_flight", "room"]

# Bytes on their way at once, at least and at most, and the share of the cache that they may take: the engine's own.
LEAST_IN_FLIGHT, MOST_IN_FLIGHT, SHARE = 4 << 20, 256 << 20, 8
BLOCK = 4096


def in_flight(limit: int, bandwidth: float, latency: float) -> int:
    """Bytes that an engine with a cache of this limit keeps on their way."""
    wanted = max(LEAST_IN_FLIGHT, min(int(2 * bandwidth * latency), MOST_IN_FLIGHT))
    return min(wanted, limit // SHARE)


def room(workload: Workload, limit: int) -> int:
    """Bytes that a cache of this limit has for data: the rest are tables, a little per file, and heads of shards."""
    dataset = workload.dataset or workload.shape
    heads = int((-(-(4 * np.diff(dataset.first) + 8) // BLOCK)).sum())
    blocks = max(limit - workload.stored.index, 0) // BLOCK
    return (blocks - min(2 * dataset.shards + heads, blocks // 4)) * 128 // 129 * BLOCK


class Wire:
    """When what is asked for now will have come."""

    def __init__(self, bandwidth: float, latency: float, request: float) -> None:
        self._bandwidth, self._latency, self._request = bandwidth, latency, request
        self._free = 0.0

    def send(self, now: float, size: float, requests: int) -> float:
        """The time of the last byte."""
        begin = max(self._free, now + self._latency)
        self._free = begin + max(size / self._bandwidth, requests * self._request)
        return self._free


class Cache:
    """Bytes by sample and shard, as they lie on the disk."""

    def __init__(self, workload: Workload, capacity: float) -> None:
        shape = workload.shape
        self.capacity = capacity
        self.used = 0.0
        self.reserved = 0.0
        self.peak = 0.0
        self.samples: NDArray[np.float32] = np.zeros(shape.samples, np.float32)

    @property
    def free(self) -> float:
        """Neither used nor promised."""
        return self.capacity - self.used - self.reserved

    def reserve(self, size: float) -> None:
        """Room for what comes."""
        self.reserved += size
        self.peak = max(self.peak, self.used + self.reserved)

    def fill(self, first: int, stop: int, size: float) -> None:
        """Reserved room has been filled with these samples; those that were there give way."""
        before = float(self.samples[first:stop].sum())
        self.samples[first:stop] = size / (stop - first)
        self.reserved -= size
        self.used += size - before

    def drop(self, first: int, stop: int) -> float:
        """Bytes that these samples took."""
        size = float(self.samples[first:stop].sum())
        self.samples[first:stop] = 0
        self.used -= size
        return size
