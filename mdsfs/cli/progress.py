"""A progress bar on a terminal, and nothing where there is none."""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Progress"]


class Progress:
    """Bytes that are through, of those in all; may be told from any thread.

    Drawn by tqdm on a terminal's stderr. Without a terminal, or without tqdm, nothing is drawn.
    """

    def __init__(self, description: str) -> None:
        self._description = description
        self._bar: Any = None
        self._lock = threading.Lock()

    def begin(self, total: int, done: int = 0) -> None:
        """Draw the bar; `done` bytes were through before."""
        if not sys.stderr.isatty():
            return
        try:
            from tqdm import tqdm
        except ImportError:
            return
        # tqdm draws nothing on a terminal that does not know its size (a serial line, a container's console)
        size = {} if os.get_terminal_size(sys.stderr.fileno()).columns else {"ncols": 80, "nrows": 24}
        scale = {"unit": "B", "unit_scale": True, "unit_divisor": 1024}
        self._bar = tqdm(desc=self._description, total=total, initial=done, leave=False, **size, **scale)

    def add(self, count: int) -> None:
        """So many bytes more."""
        if self._bar is not None:
            with self._lock:
                self._bar.update(count)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
