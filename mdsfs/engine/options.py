"""How an engine runs, as given on its command line; what of it clients may expect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from streaming.errors import CacheLimitError, EngineRefusedError

from .fetching.pool import DEFAULT_PART_SIZE, DEFAULT_THREADS
from .memory import Shares, share_out

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["LEAST_DATA", "ServiceOptions"]

# Beside index and tables there must be room for a few ranges of a few readers at once.
LEAST_DATA = 2 << 20


@dataclass(frozen=True, slots=True)
class ServiceOptions:
    """The engine's options, complete."""

    cache_dir: Path
    cache_limit: int
    verify: str = "transport"
    processes: int = 1
    threads: int = DEFAULT_THREADS
    part_size: int = DEFAULT_PART_SIZE
    allow_other: bool = False
    idle_exit: float | None = None
    ready_fd: int | None = None
    metrics: str | None = None
    """Where the metrics server listens, `HOST:PORT`."""
    memory_limit: int | None = None

    def __post_init__(self) -> None:
        self.memory()  # a limit that is too small is an error now
        if self.cache_limit < LEAST_DATA:
            raise CacheLimitError(
                f"a cache limit of {self.cache_limit} bytes is too small: the least is {LEAST_DATA} bytes "
                "and what the index and tables of a dataset take"
            )

    def memory(self) -> Shares:
        """What each part of the engine may use."""
        return share_out(self.memory_limit, self.processes, self.threads, self.part_size)

    def shown(self) -> dict[str, Any]:
        """What `hello` and status tell."""
        return {
            "cache_limit": self.cache_limit,
            "verify": self.verify,
            "processes": self.processes,
            "threads": self.threads,
            "part_size": self.part_size,
            "allow_other": self.allow_other,
            "idle_exit": self.idle_exit,
            "metrics": self.metrics,
            "memory_limit": self.memory_limit,
        }

    def check(self, expected: Mapping[str, Any]) -> None:
        """Refuse a client that counts on other options. More verification than expected is no reason to."""
        mine = self.shown()
        differing = [
            (name, mine.get(name), value)
            for name, value in expected.items()
            if mine.get(name) != value and (name, mine.get(name)) != ("verify", "shard")
        ]
        if differing:
            runs = ", ".join(f"{_option(name)} {found}" for name, found, _ in differing)
            wanted = ", ".join(f"{_option(name)} {value}" for name, _, value in differing)
            raise EngineRefusedError(
                f"the engine of {self.cache_dir} runs with {runs}, not with {wanted}: use the same, "
                "or another --cache-dir, or stop that engine first"
            )


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")[:40]
