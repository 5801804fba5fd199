"""Memory that processes share by a name."""

from __future__ import annotations

from streaming.compatibility.shared import SharedArray, SharedBarrier, SharedMemory, SharedScalar

__all__ = ["SharedArray", "SharedBarrier", "SharedMemory", "SharedScalar"]
