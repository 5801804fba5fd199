"""The document behind `.mdsfs/status`: the engine's own status, and beside it what only this mount knows."""

from __future__ import annotations

import json
import os
import resource
import time
from collections import deque
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from streaming.errors import StreamingError

if TYPE_CHECKING:
    from .hinting import MountHint
    from .link import Link
    from .tree import Tree
    from .tuning import Tuning

__all__ = ["StatusDocument", "distribution_version"]

# The status of a mount whose engine hangs must still come: its own half, after this long.
ENGINE_PATIENCE = 2.0
KEPT_ERRORS = 20


def distribution_version() -> str:
    """The version of the installed distribution; a source tree that was never installed has none."""
    try:
        return version("mdsfs")
    except PackageNotFoundError:
        return "unknown"


class StatusDocument:
    """Put together anew at each open."""

    def __init__(self, tree: Tree, link: Link, mountpoint: str, source: str) -> None:
        self._tree = tree
        self._link = link
        self._mountpoint = mountpoint
        self._source = source
        self._started = time.time()
        self._errors: deque[dict[str, Any]] = deque(maxlen=KEPT_ERRORS)
        self.tuning: Tuning | None = None
        self.hint: MountHint | None = None

    def note_error(self, path: str, reason: str) -> None:
        """Keep the last few errors for whoever looks."""
        self._errors.append({"time": time.time(), "file": path, "reason": reason})

    async def render(self) -> bytes:
        """The document as JSON. Without an engine it says so and shows the mount's half."""
        document: dict[str, Any] = {}
        try:
            document.update(json.loads(await self._link.engine_status(ENGINE_PATIENCE)))
            engine_error = None
        except StreamingError as error:
            engine_error = str(error)
        document["mount"] = {
            "mountpoint": self._mountpoint,
            "source": self._source,
            "pid": os.getpid(),
            "version": distribution_version(),
            "started": self._started,
            "files": self._tree.file_count,
            "shown_bytes": self._tree.shown_bytes,
            "hidden": len(self._tree.hidden),
            "hidden_examples": list(self._tree.hidden[:KEPT_ERRORS]),
            "reads_at_once": self._link.reads_at_once,
            "reads_asked": self._link.reads_asked,
            "reads_waiting": self._link.waiting,
            "engine_connections": self._link.sessions,
            "engine_error": engine_error,
            "kernel": asdict(self.tuning) if self.tuning else None,
            "order": self.hint.to_json() if self.hint else None,
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "errors": list(self._errors),
        }
        return json.dumps(document, indent=1).encode() + b"\n"
