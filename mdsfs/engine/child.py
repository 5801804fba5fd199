"""What the engine's children (fetchers, indexer) have in common: they run this very package."""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

__all__ = ["die_with_parent", "environment", "plain_environment"]

_PR_SET_PDEATHSIG = 1
# What a child needs that talks to no store.
_PLAIN = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "MDSFS_LOG_FORMAT")
_ROOT = str(Path(__file__).resolve().parents[2])


def environment() -> dict[str, str]:
    """The engine's environment, credentials included; its packages first on the path, since its directory is `/`."""
    paths = [_ROOT, *(path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


def plain_environment() -> dict[str, str]:
    """The same without credentials, for children that need none."""
    found = environment()
    return {name: found[name] for name in (*_PLAIN, "PYTHONPATH") if name in found}


def die_with_parent(parent: int) -> None:
    """Be killed when the process `parent` ends, also when it has ended already."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
