"""Arguments by the names that they had in earlier versions of mosaicml-streaming."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["DATASET", "STREAM", "accept_renamed"]

# Earlier name to today's; None: it has no meaning any more.
STREAM: dict[str, str | None] = {"samples": "choose", "keep_raw": None}
DATASET: dict[str, str | None] = {"samples_per_epoch": "epoch_size", "keep_raw": None}


def accept_renamed(
    owner: str, renamed: Mapping[str, str | None], given: Mapping[str, Any], values: dict[str, Any]
) -> dict[str, Any]:
    """`values` by today's names, those of `given` under earlier names included, with a warning for each.

    Raises TypeError for a name that never was one.
    """
    for old, value in given.items():
        if old not in renamed:
            raise TypeError(f"{owner} got an unexpected keyword argument {old!r}")
        new = renamed[old]
        advice = "is ignored since 0.5: leave it out" if new is None else f"is called `{new}` since 0.5: use that"
        warnings.warn(f"`{old}` {advice}", DeprecationWarning, stacklevel=4)
        if new is not None and values[new] is None:
            values[new] = value
    return values
