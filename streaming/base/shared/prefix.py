"""A number that the names of a run's shared memory begin with."""

from __future__ import annotations

from streaming.compatibility.shared import get_shm_prefix

__all__ = ["get_shm_prefix"]
