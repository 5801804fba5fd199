"""Pins against the limit: how much of the cache they may take, and which go where the limit is lower than it was."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from streaming.engine.residency import BLOCK

from ..options import LEAST_DATA

if TYPE_CHECKING:
    from .cache import Cache
    from .dataset import Dataset

__all__ = ["fit_pins", "note_pins", "room_for_pins"]

log = logging.getLogger(__name__)


def room_for_pins(cache: Cache, more: Dataset | None = None) -> int:
    """Blocks that pins may take: what neither indexes and tables in use need, nor the least that reading does."""
    idle = [each for each in cache.datasets.values() if cache.is_idle(each) and each is not more]
    fixed = cache.ledger.fixed - sum(cache.fixed_of(each) for each in idle)
    return cache.ledger.limit - fixed - LEAST_DATA // BLOCK


async def fit_pins(cache: Cache) -> None:
    """At the start: where the limit is lower than it was, pins are dropped until the others fit. The bound is a
    promise, a pin is a wish."""
    for dataset in list(cache.datasets.values()):
        if cache.pins.blocks <= room_for_pins(cache):
            return
        dropped = list(cache.pins.of(dataset.number))
        if dropped:
            log.warning("unpinned the %d pinned files of %s: the limit is too low for them", len(dropped), dataset.url)
            cache.unpin(dataset, dropped)
            await note_pins(dataset, dropped, kept=False)


async def note_pins(dataset: Dataset, chosen: list[int], *, kept: bool) -> None:
    """Into the state tables, for the next engine."""

    def note() -> None:
        for file in chosen:
            dataset.folder.state.keep(file, kept=kept)

    await trio.to_thread.run_sync(note)
