"""Read and write MDS datasets: a light drop-in for mosaicml-streaming.

Names are imported on first use: `import streaming` alone brings neither numpy nor torch nor a cloud SDK.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streaming.dataloader import StreamingDataLoader as StreamingDataLoader
    from streaming.dataset import StreamingDataset as StreamingDataset
    from streaming.local import LocalDataset as LocalDataset
    from streaming.stream import Stream as Stream
    from streaming.writer import CSVWriter as CSVWriter
    from streaming.writer import JSONWriter as JSONWriter
    from streaming.writer import MDSWriter as MDSWriter
    from streaming.writer import TSVWriter as TSVWriter
    from streaming.writer import XSVWriter as XSVWriter

# The release of mosaicml-streaming whose interface this is, which programs compare with, and who gives it (PEP 440).
__version__ = "0.13.0+mdsfs.0.1.0"

_HOMES = {
    "CSVWriter": "streaming.writer",
    "JSONWriter": "streaming.writer",
    "LocalDataset": "streaming.local",
    "MDSWriter": "streaming.writer",
    "Stream": "streaming.stream",
    "StreamingDataLoader": "streaming.dataloader",
    "StreamingDataset": "streaming.dataset",
    "TSVWriter": "streaming.writer",
    "XSVWriter": "streaming.writer",
}

__all__ = [
    "CSVWriter",
    "JSONWriter",
    "LocalDataset",
    "MDSWriter",
    "Stream",
    "StreamingDataLoader",
    "StreamingDataset",
    "TSVWriter",
    "XSVWriter",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'streaming' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
