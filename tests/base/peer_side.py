"""Run by the interpreter of .peer: calls mosaicml-streaming's helpers and prints what they give as JSON.

The one argument is a JSON list of [function's name, its arguments]; an exception is given as its class and text.
"""

from __future__ import annotations

import json
import logging
import sys

from streaming import StreamingDataLoader, StreamingDataset
from streaming.base import util
from streaming.base.compression import get_compressions
from streaming.base.format import get_index_basename
from streaming.base.format.mds.encodings import get_mds_encodings
from streaming.base.hashing import get_hashes


def epoch(folder: str, state: dict | None, batches: int | None) -> object:  # type: ignore[type-arg]
    """(numbers that the loader gives from the state on, its state after so many batches)."""
    loader = StreamingDataLoader(StreamingDataset(local=folder, shuffle=True, batch_size=4), batch_size=4)
    if state is not None:
        loader.load_state_dict(state)
    seen: list[int] = []
    for number, batch in enumerate(loader, start=1):
        seen += batch["n"].tolist()
        if number == batches:
            break
    return [seen, loader.state_dict()]


EXTRA = {each.__name__: each for each in (epoch, get_compressions, get_hashes, get_index_basename, get_mds_encodings)}


def answer(name: str, arguments: list) -> object:  # type: ignore[type-arg]
    """What the function gives or raises."""
    try:
        found = (EXTRA.get(name) or getattr(util, name))(*arguments)
    except (ValueError, RuntimeError, FileNotFoundError) as error:
        return [type(error).__name__, str(error)]
    return sorted(found) if isinstance(found, set) else found


if __name__ == "__main__":
    logging.disable()
    print(json.dumps([answer(name, arguments) for name, arguments in json.loads(sys.argv[1])]))
