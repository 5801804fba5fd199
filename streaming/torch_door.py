"""The way for torch to know our datasets without our importing torch.

`DataLoader` asks `isinstance(dataset, IterableDataset)`. That looks at the dataset's `__class__`, and whoever asks has
imported torch: at that moment the class is registered as a virtual subclass.
"""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["SeenByTorch"]


class SeenByTorch:
    """A base of classes that are torch `IterableDataset`s as soon as there is torch."""

    def _seen(self) -> type[Any]:
        cls = type(self)
        data = sys.modules.get("torch.utils.data")
        iterable = getattr(data, "IterableDataset", None)
        if iterable is not None and "_known_to_torch" not in cls.__dict__:
            cls._known_to_torch = True  # type: ignore[attr-defined]
            iterable.register(cls)
        return cls

    __class__ = property(_seen)
