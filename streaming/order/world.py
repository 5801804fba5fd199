"""Which node, rank and worker this process is, out of how many: a value, and one thin function that looks it up."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["World"]


@dataclass(frozen=True)
class World:
    """Nodes × ranks × workers, all nodes alike; `worker` counts over the whole world, workers of a rank side by side.

    Counts without a qualifier (`num_ranks`, `num_workers`) are of the world; a DataLoader's `num_workers` is
    `workers_per_rank` here.
    """

    num_nodes: int
    ranks_per_node: int
    workers_per_rank: int
    worker: int

    @property
    def num_ranks(self) -> int:
        return self.num_nodes * self.ranks_per_node

    @property
    def num_workers(self) -> int:
        return self.num_ranks * self.workers_per_rank

    @property
    def workers_per_node(self) -> int:
        return self.ranks_per_node * self.workers_per_rank

    @property
    def node(self) -> int:
        return self.worker // self.workers_per_node

    @property
    def rank(self) -> int:
        return self.worker // self.workers_per_rank

    @property
    def rank_of_node(self) -> int:
        return self.rank % self.ranks_per_node

    @property
    def worker_of_node(self) -> int:
        return self.worker % self.workers_per_node

    @property
    def worker_of_rank(self) -> int:
        return self.worker % self.workers_per_rank

    @property
    def is_multinode(self) -> bool:
        return self.num_nodes > 1

    @property
    def is_leader(self) -> bool:
        return self.worker == 0

    @property
    def is_local_leader(self) -> bool:
        return self.worker_of_node == 0

    def to_json(self) -> dict[str, Any]:
        """Every count and position by name."""
        names = [name for name, value in vars(World).items() if isinstance(value, property)]
        return {name: getattr(self, name) for name in (*self.__dataclass_fields__, *names)}

    def copy(self) -> World:
        return World(self.num_nodes, self.ranks_per_node, self.workers_per_rank, self.worker)

    def replicate(self, replication: int) -> World:
        """The world in which `replication` neighbouring ranks count as one, because they see the same samples."""
        if replication <= 0:
            raise ValueError("Replication factor must be positive.")
        if self.num_ranks % replication:
            raise ValueError("World size must be divisible by your replication factor.")
        ranks = self.num_ranks // replication
        nodes = ranks // self.ranks_per_node if ranks % self.ranks_per_node == 0 else 1
        worker = self.rank // replication * self.workers_per_rank + self.worker_of_rank
        return World(nodes, ranks // nodes, self.workers_per_rank, worker)

    @classmethod
    def detect(cls, environment: Mapping[str, str] | None = None) -> World:
        """This process's place, from RANK, WORLD_SIZE, LOCAL_WORLD_SIZE and torch's worker information.

        An initialised torch process group wins over RANK and WORLD_SIZE, as in the peer. Never initialises one.
        """
        known = os.environ if environment is None else environment
        rank, ranks = _process_group() or (int(known.get("RANK", 0)), int(known.get("WORLD_SIZE", 1)))
        per_node = int(known.get("LOCAL_WORLD_SIZE", 1))
        return cls(ranks // per_node, per_node, 1, rank).detect_workers()

    def detect_workers(self) -> World:
        """The same rank, seen from the DataLoader worker that this process is (or from the rank itself: one worker)."""
        index, count = _worker_of_loader()
        return World(self.num_nodes, self.ranks_per_node, count, self.rank * count + index)


def _worker_of_loader() -> tuple[int, int]:
    # A process that never imported torch's loader is no worker of it: looking costs nothing and imports nothing.
    loader = sys.modules.get("torch.utils.data")
    info = loader.get_worker_info() if loader is not None else None
    return (info.id, info.num_workers) if info is not None else (0, 1)


def _process_group() -> tuple[int, int] | None:
    group = sys.modules.get("torch.distributed")
    if group is None or not group.is_available() or not group.is_initialized():
        return None
    return group.get_rank(), group.get_world_size()
