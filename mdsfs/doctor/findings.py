"""What the doctor finds: one value per thing looked at."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["Finding", "Level", "fail", "ok", "warn"]

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """`fail`: a mount will not work; `warn`: it will, but worse than it could; `fix` says what to do then."""

    level: Level
    what: str
    found: str
    fix: str = ""

    def shown(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def ok(what: str, found: str) -> Finding:
    """Nothing to do."""
    return Finding("ok", what, found)


def warn(what: str, found: str, fix: str) -> Finding:
    """It works, but."""
    return Finding("warn", what, found, fix)


def fail(what: str, found: str, fix: str) -> Finding:
    """It will not work."""
    return Finding("fail", what, found, fix)
