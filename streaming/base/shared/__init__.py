"""Memory that processes share by a name."""

from __future__ import annotations

from streaming.compatibility.shared import SharedArray, SharedBarrier, SharedMemory, SharedScalar, get_shm_prefix

__all__ = ["SharedArray", "SharedBarrier", "SharedMemory", "SharedScalar", "get_shm_prefix"]
