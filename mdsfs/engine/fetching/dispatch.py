"""Which job runs next: demand before what is ahead, first come first served, and at most so many of one object.

Pure: tickets in, tickets out. The bound per object is what keeps a stuck object from taking every thread.
"""

from __future__ import annotations

import heapq
import itertools
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable

__all__ = ["Dispatcher"]

T = TypeVar("T", bound="Hashable")
Entry = tuple[int, int]  # priority, order of arrival


class Dispatcher(Generic[T]):
    """A priority queue over objects, of which each runs at most `per_object` jobs. Every call costs O(log waiting)."""

    def __init__(self, per_object: int) -> None:
        self._per_object = per_object
        self._arrival = itertools.count()
        self._waiting: dict[Hashable, list[tuple[Entry, T]]] = {}
        self._heads: list[tuple[Entry, int, Hashable]] = []
        self._ties = itertools.count()
        self._running: dict[Hashable, int] = {}
        self._entries: dict[T, tuple[Hashable, Entry]] = {}

    def __repr__(self) -> str:
        return f"Dispatcher(waiting={len(self)}, running={self.running})"

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def running(self) -> int:
        """Jobs handed out and not finished."""
        return sum(self._running.values())

    def add(self, ticket: T, target: Hashable, priority: int, *, first: bool = False) -> None:
        """Queue a ticket; `first` puts it before all others of its priority (it ran already, and lost its process)."""
        arrival = next(self._arrival)
        entry = (priority, -arrival if first else arrival)
        self._entries[ticket] = (target, entry)
        # Entries are unique, so that tickets are never compared.
        heapq.heappush(self._waiting.setdefault(target, []), (entry, ticket))
        self._offer(target)

    def remove(self, ticket: T) -> bool:
        """Take back a waiting ticket; False when it does not wait."""
        target, _ = self._entries.pop(ticket, (None, None))
        self._offer(target)  # whoever was behind it
        return target is not None

    def next(self) -> T | None:
        """The ticket to run now, counted as running from here on; None when nothing may run."""
        while self._heads:
            entry, _, target = heapq.heappop(self._heads)
            waiting = self._clean(target)
            if not waiting or waiting[0][0] != entry or self._running.get(target, 0) >= self._per_object:
                continue
            _, ticket = heapq.heappop(waiting)
            del self._entries[ticket]
            self._running[target] = self._running.get(target, 0) + 1
            self._offer(target)
            return ticket
        return None

    def finished(self, target: Hashable) -> None:
        """One running job of this object has ended."""
        self._running[target] -= 1
        if not self._running[target]:
            del self._running[target]
        self._offer(target)

    def _offer(self, target: Hashable) -> None:
        waiting = self._clean(target)
        if waiting and self._running.get(target, 0) < self._per_object:
            heapq.heappush(self._heads, (waiting[0][0], next(self._ties), target))

    def _clean(self, target: Hashable) -> list[tuple[Entry, T]]:
        waiting = self._waiting.get(target, [])
        while waiting and self._entries.get(waiting[0][1], (None, None))[1] != waiting[0][0]:
            heapq.heappop(waiting)
        if not waiting:
            self._waiting.pop(target, None)
        return waiting
