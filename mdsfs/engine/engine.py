"""The engine: its parts, put together, and what concerns all of them."""

from __future__ import annotations

import os
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import trio

from mdsfs.metrics.timings import Timings
from streaming.engine.messages import PROTOCOL

from .cache.cache import Cache
from .cache.cachedisk import CacheDisk
from .fetching.pool import FetcherPool
from .filling.ahead import Ahead
from .filling.fills import Fills
from .filling.passing import Passing
from .filling.wants import Wants
from .filling.widen import MAX_WINDOW
from .health import Health
from .memory import LEAST_PART
from .planning.hints import Hints
from .planning.orders import Orders
from .planning.planning import Planning
from .sources.sources import Sources
from .status import document, version
from .store.disk import is_memory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .cache.dataset import Dataset
    from .options import ServiceOptions
    from .serving.session import Session
    from .store.directory import CacheStore

__all__ = ["Engine"]


class Engine:
    """One engine of one cache directory. `serve` on the pool, `run` on ahead and on planning must be running."""

    def __init__(self, options: ServiceOptions, store: CacheStore, nursery: trio.Nursery) -> None:
        """`nursery` is where fills run: it outlives every client."""
        self.options = options
        self.store = store
        self.started = time.time()
        self.started_at = time.monotonic()  # the other one jumps when somebody sets the clock
        self.timings = Timings()
        self.health = Health()
        self.cache = Cache(options.cache_limit, self.timings, trees=not is_memory(options.cache_dir))
        self.disk = CacheDisk(options.cache_dir, self.health)
        self.memory = options.memory()
        self.pool = FetcherPool(
            self.memory.processes, self.memory.threads, self.memory.part_size, timings=self.timings, health=self.health
        )
        # of a small cache a part must not push out what has just been brought
        part_size = min(self.memory.part_size, max(options.cache_limit // 16, LEAST_PART))
        self.fills = Fills(self.cache, self.disk, self.pool, nursery, part_size, edges=self.memory.edges)
        self.passing = Passing(self.pool, self.fills.forms, self.memory.passing)
        self.wants = Wants(self.cache, self.fills, self.passing, self.timings)
        self.ahead = Ahead(self.fills, options.cache_limit, part_size, nursery)
        self.sources = Sources(store, self.cache, self.fills, self.ahead, shard_level=options.verify == "shard")
        self.hints = Hints(Orders(), nursery)
        self.hints.planner = self.planning = Planning(self.cache, self.fills, nursery)
        self.sessions: set[Session] = set()
        self.metrics_url: str | None = None
        self.departed: Counter[str] = Counter()
        """What clients that are gone have done."""
        self.max_window = min(MAX_WINDOW, options.cache_limit // 4)
        self.stopping = trio.Event()
        self.dismissed = False
        """The only client said that nobody will need the engine after it: an idle time is not waited for."""
        self._clients_changed = trio.lowlevel.ParkingLot()

    def __repr__(self) -> str:
        return f"Engine({self.options.cache_dir}, {len(self.sessions)} clients, {self.cache})"

    def stop(self) -> None:
        """Have the engine end."""
        self.stopping.set()

    @property
    def is_idle(self) -> bool:
        """Nobody is connected and nothing is being fetched."""
        return not self.sessions and not self.fills.running

    def clients_changed(self) -> None:
        """A client has come or gone."""
        self._clients_changed.unpark_all()

    async def wait_clients_changed(self) -> None:
        """Return when a client has come or gone."""
        await self._clients_changed.park()

    def check_expected(self, expected: Mapping[str, Any]) -> None:
        """Refuse a client that counts on other options."""
        self.options.check(expected)

    def introduction(self) -> dict[str, Any]:
        """The answer to `hello`."""
        return {
            "protocol": PROTOCOL,
            "pid": os.getpid(),
            "version": version(),
            "cache_dir": str(self.options.cache_dir),
            "options": self.options.shown(),
        }

    def file_state(self, dataset: Dataset, file: int) -> dict[str, Any]:
        """The answer to `state`."""
        record = dataset.folder.state.get(file)
        work = dataset.work.get(file)
        resident = self.cache.ledger.resident_of(dataset.number, file) * 4096
        if work is not None and work.error is not None:
            state = "failed"
        elif dataset.is_complete(file):
            state = "complete"
        else:
            state = "partial" if resident else "absent"
        hashes = dataset.folder.expected_hashes(file)
        return {
            "state": state,
            "level": record.level if resident else "none",
            "resident_bytes": min(resident, dataset.size(file)),
            "source": f"{dataset.url.rstrip('/')}/{dataset.tables.key(file)}",
            "hash": next((f"{name}:{digest}" for name, digest in hashes.items()), None),
        }

    async def status_document(self, *, brief: bool = False) -> bytes:
        """The status document (JSON)."""
        return await document(self, brief=brief)
