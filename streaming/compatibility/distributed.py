"""Ranks from the environment, and collectives that do nothing where no process group is initialised.

torch is not imported: a process that has not imported it has no process group.
"""

from __future__ import annotations

import os
import sys
from typing import Any, TypeVar

__all__ = [
    "all_gather",
    "all_gather_object",
    "barrier",
    "broadcast",
    "get_local_rank",
    "get_local_world_size",
    "get_rank",
    "get_world_size",
    "maybe_init_dist",
]

T = TypeVar("T")


def get_rank() -> int:
    """RANK, or 0."""
    return int(os.environ.get("RANK", 0))


def get_world_size() -> int:
    """WORLD_SIZE, or 1."""
    return int(os.environ.get("WORLD_SIZE", 1))


def get_local_rank() -> int:
    """LOCAL_RANK, or 0."""
    return int(os.environ.get("LOCAL_RANK", 0))


def get_local_world_size() -> int:
    """LOCAL_WORLD_SIZE, or 1."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def barrier() -> None:
    """Waits for every rank of the process group, where there is one."""
    if (group := _group()) is not None:
        group.barrier()


def broadcast(tensor: Any, src: int) -> None:
    """Fills `tensor` with that of rank `src`, where there is a process group."""
    if (group := _group()) is not None:
        group.broadcast(tensor, src)


def all_gather(tensor_list: list[Any], tensor: Any) -> None:
    """Fills `tensor_list` with the tensors of all ranks, where there is a process group."""
    if (group := _group()) is not None:
        group.all_gather(tensor_list, tensor)


def all_gather_object(obj: T) -> list[T]:
    """The objects of all ranks. Raises RuntimeError for several ranks without a process group."""
    ranks = get_world_size()
    if (group := _group()) is not None:
        gathered: list[Any] = [None] * ranks
        group.all_gather_object(gathered, obj)
        return gathered
    if ranks == 1:
        return [obj]
    raise RuntimeError(
        f"The world_size({ranks}) > 1, but the distributed package is not available or has not been initialized. "
        "Please check you have initialized the distributed runtime and that PyTorch has been built with distributed "
        "support."
    )


def maybe_init_dist() -> bool:
    """False: nothing here needs a process group, and initialising one would be in the way of the program that does."""
    return False


def _group() -> Any:
    """torch.distributed, if a process group is initialised."""
    found = sys.modules.get("torch.distributed")
    return found if found is not None and found.is_available() and found.is_initialized() else None
