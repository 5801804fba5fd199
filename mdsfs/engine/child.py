"""What the engine's children (fetchers, indexer) have in common: they run this very package."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["environment"]

_ROOT = str(Path(__file__).resolve().parents[2])


def environment() -> dict[str, str]:
    """The engine's environment, credentials included; its packages first on the path, since its directory is `/`."""
    paths = [_ROOT, *(path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
