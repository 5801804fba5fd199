"""The names of mosaicml-streaming in the places where programs import them: re-exports, and nothing else.

The classes themselves are those of `streaming`, imported on first use.
"""

from __future__ import annotations

from typing import Any

import streaming


def __getattr__(name: str) -> Any:
    if name not in streaming.__all__:
        raise AttributeError(f"module 'streaming.base' has no attribute {name!r}")
    return getattr(streaming, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *streaming.__all__})
