"""Whole shards or exact ranges: which of the two a dataset's cache is kept in, why, and where that would change.

Whole shards need few requests, and cost nothing as long as the cache holds every shard from its first use to its last
(the live window). Below that every shard is fetched again and again; then only the samples themselves are fetched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .track import Needs

__all__ = ["Regime", "choose"]

# Of whole shards so much may be unused (another node reads it) before ranges are cheaper, whatever the cache holds.
UNUSED = 1.1
# A choice stands until the cache is so much smaller than it must be: the order of each epoch is a little different.
STEADY = 0.95


@dataclass(frozen=True, slots=True)
class Regime:
    """What was chosen for one dataset."""

    kind: Literal["shards", "ranges"]
    reason: str
    changes_at_bytes: int | None
    """The cache size at which the other one would be chosen; None where none would."""


def choose(
    needs: Mapping[int, Needs], capacity: int, ahead: int, before: Mapping[int, Regime] | None = None
) -> dict[int, Regime]:
    """Per dataset. `capacity`: bytes that the cache has for data; `ahead`: of these, for what is read soon.

    The smallest live windows are served first: as many datasets as possible are kept whole.
    """
    before = before or {}
    found: dict[int, Regime] = {}
    taken = ahead
    for number, need in sorted(needs.items(), key=lambda each: (each[1].window, each[0])):
        if need.shards > UNUSED * need.samples and need.samples:
            share = need.samples / need.shards
            found[number] = Regime("ranges", f"this host reads {share:.0%} of the shards that it reads from", None)
            continue
        known = before.get(number)
        factor = STEADY if known is not None and known.kind == "shards" else 1.0
        at = taken + need.window
        if capacity >= factor * at:
            found[number] = Regime("shards", f"the cache holds the live window of {_size(need.window)}", at)
            taken += need.window
        else:
            found[number] = Regime("ranges", f"the live window of {_size(need.window)} is larger than the cache", at)
    return found


def _size(count: int) -> str:
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count} bytes"
