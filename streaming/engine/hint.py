"""The order hint: what a reader will read, as a document of a few hundred bytes (HINT.md). Pure.

Owns the bytes and their bounds: whatever `decode` lets through can be computed with, or says by itself how much that
would be. What a hint is good for, and for how long, is the engine's business.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from streaming.errors import ProtocolError
from streaming.order.batching import METHODS
from streaming.order.partition import ALGORITHMS as PARTITIONS
from streaming.order.shuffles import ALGORITHMS as SHUFFLES
from streaming.order.spec import OrderSpec, StreamSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

__all__ = ["MAX_STREAMS", "VERSION", "Hint", "HintWorld", "HintedStream", "decode", "encode", "order_of", "spec_of"]

VERSION = 1
_MAGIC = b"MDSHINT1"
_HEAD = struct.Struct("<8sQ")  # magic, bytes of the header
# A stream takes about 80 bytes.
MAX_HEADER = 2 << 20
MAX_STREAMS = 16384
MAX_NAME = 200
# Far beyond any run, small enough that no product of two of them overflows an int64.
LARGEST = 1 << 31
_ARRAY = np.dtype("<i8")

# What OrderSpec is made of, beside its streams, and the least of each number.
_NUMBERS = {"batch_size": 1, "canonical_nodes": 1, "seed": 0, "block_size": 0, "sampling_granularity": 1}
# 64 canonical nodes a node are usual; each takes steps of its own in a shuffle.
_MOST = {"seed": 1 << 62, "canonical_nodes": 1 << 18}
_CHOICES: dict[str, tuple[str, ...]] = {
    "shuffle_algo": tuple(SHUFFLES),
    "partition_algo": tuple(PARTITIONS),
    "batching_method": tuple(METHODS),
    "sampling_method": ("balanced", "fixed"),
}


@dataclass(frozen=True)
class HintedStream:
    """A stream of the mix. `dataset`: the connection's number, or `sizes`: samples of each shard of one elsewhere."""

    choose: int
    proportion: float = 1.0
    dataset: int | None = None
    sizes: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class HintWorld:
    """Who reads: all nodes and ranks of the run, workers of a rank, and which ranks are on this host.

    Ranks that see the same samples count as one. `first_rank` … `first_rank + local_ranks` - 1 are here.
    """

    nodes: int = 1
    ranks_per_node: int = 1
    workers: int = 1
    first_rank: int = 0
    local_ranks: int = 1


@dataclass(frozen=True)
class Hint:
    """One job. Either `order` (arguments of OrderSpec by name) or `ids` say what is read.

    `ids`: int64 [ranks here][workers of a rank][batches of a worker][batch size], sample ids of the mix, -1 for none.
    """

    job: str
    streams: tuple[HintedStream, ...]
    world: HintWorld = field(default_factory=HintWorld)
    order: Mapping[str, Any] = field(default_factory=dict)
    ids: NDArray[np.int64] | None = None
    numpy: str = np.__version__
    """The generators of another numpy may draw otherwise: its orders are no orders for this reader."""


def order_of(spec: OrderSpec) -> dict[str, Any]:
    """A spec's arguments, without its streams, as a hint carries them."""
    names = (*_NUMBERS, *_CHOICES, "shuffle", "initial_nodes")
    return {name: getattr(spec, name) for name in names}


def spec_of(hint: Hint, sizes: Sequence[NDArray[np.int64]]) -> OrderSpec:
    """The spec of a hint, with the shard sizes of every stream."""
    streams = zip(hint.streams, sizes, strict=True)
    return OrderSpec(tuple(StreamSpec(its, each.choose, each.proportion) for each, its in streams), **hint.order)


# ---- the bytes -------------------------------------------------------------------------------------------------------


def encode(hint: Hint) -> list[bytes | memoryview]:
    """The document, in pieces to be written one after the other."""
    arrays = [each.sizes for each in hint.streams if each.sizes is not None]
    if hint.ids is not None:
        arrays.append(hint.ids)
    world = hint.world
    header: dict[str, Any] = {
        "version": VERSION,
        "job": hint.job,
        "numpy": hint.numpy,
        "streams": [_stream_to_json(each) for each in hint.streams],
        "world": [world.nodes, world.ranks_per_node, world.workers, world.first_rank, world.local_ranks],
    }
    if hint.ids is None:
        header["order"] = dict(hint.order)
    else:
        header["ids"] = list(hint.ids.shape)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    pieces: list[bytes | memoryview] = [_HEAD.pack(_MAGIC, len(text)) + text]
    pieces += [np.ascontiguousarray(each, _ARRAY).reshape(-1).view(np.uint8).data for each in arrays if each.size]
    return pieces


def _stream_to_json(stream: HintedStream) -> dict[str, Any]:
    found: dict[str, Any] = {"choose": stream.choose, "proportion": stream.proportion}
    if stream.sizes is None:
        return {**found, "dataset": stream.dataset}
    return {**found, "shards": len(stream.sizes)}


def decode(data: memoryview) -> Hint:
    """The hint of a document; arrays are views of it. Raises ProtocolError for anything that is none."""
    if len(data) < _HEAD.size:
        raise ProtocolError("a hint is shorter than its head")
    magic, length = _HEAD.unpack_from(data)
    if magic != _MAGIC or length > min(MAX_HEADER, len(data) - _HEAD.size):
        raise ProtocolError("a hint has another magic, or a header longer than itself")
    try:
        header = json.loads(bytes(data[_HEAD.size : _HEAD.size + length]))
    except (ValueError, RecursionError) as error:
        raise ProtocolError("a hint's header is not JSON") from error
    if not isinstance(header, dict) or header.get("version") != VERSION:
        raise ProtocolError(f"a hint's version: expected {VERSION}")
    return _Arrays(data[_HEAD.size + length :]).hint(header)


class _Arrays:
    """What follows the header, taken in turn."""

    def __init__(self, data: memoryview) -> None:
        self._data = data

    def take(self, count: int) -> NDArray[np.int64]:
        if count * 8 > len(self._data):
            raise ProtocolError("a hint ends before its arrays do")
        found = np.frombuffer(self._data[: count * 8], _ARRAY)
        self._data = self._data[count * 8 :]
        return found

    def hint(self, header: dict[str, Any]) -> Hint:
        job, numpy = header.get("job"), header.get("numpy")
        if not isinstance(job, str) or not 0 < len(job) <= MAX_NAME or not job.isprintable():
            raise ProtocolError("job: expected a short printable name")
        listed = header.get("streams")
        if not isinstance(listed, list) or not 0 < len(listed) <= MAX_STREAMS:
            raise ProtocolError(f"streams: expected a list of 1 to {MAX_STREAMS}")
        streams = tuple(self._stream(each) for each in listed)
        world = _world(header.get("world"))
        if ("order" in header) == ("ids" in header):
            raise ProtocolError("a hint has either an order or ids")
        if "order" in header:
            return Hint(job, streams, world, order=_order(header["order"]), numpy=str(numpy)[:MAX_NAME])
        return Hint(job, streams, world, ids=self._ids(header["ids"], world), numpy=str(numpy)[:MAX_NAME])

    def _stream(self, entry: Any) -> HintedStream:
        if not isinstance(entry, dict):
            raise ProtocolError("streams: expected objects")
        choose = _number("choose", entry.get("choose"), 0, LARGEST)
        proportion = entry.get("proportion")
        if isinstance(proportion, bool) or not isinstance(proportion, int | float) or not 0 <= proportion <= LARGEST:
            raise ProtocolError("proportion: expected a number from 0 on")
        if "dataset" in entry:
            return HintedStream(choose, float(proportion), _number("dataset", entry["dataset"], 1, LARGEST))
        sizes = self.take(_number("shards", entry.get("shards"), 1, LARGEST))
        if sizes.min() < 0 or sizes.max() > LARGEST or int(sizes.sum()) > LARGEST:
            raise ProtocolError("shards: expected sizes from 0 on")
        return HintedStream(choose, float(proportion), sizes=sizes)

    def _ids(self, shape: Any, world: HintWorld) -> NDArray[np.int64]:
        if not isinstance(shape, list) or len(shape) != 4:
            raise ProtocolError("ids: expected a shape of four sides")
        sides = [_number("ids", side, 1, LARGEST) for side in shape]
        if sides[0] != world.local_ranks or sides[1] != world.workers or math.prod(sides) > LARGEST:
            raise ProtocolError("ids: the shape is too large, or another than the world's")
        return self.take(math.prod(sides)).reshape(sides)


def _world(values: Any) -> HintWorld:
    if not isinstance(values, list) or len(values) != 5:
        raise ProtocolError("world: expected five numbers")
    nodes, ranks, workers, first, local = (_number("world", each, 0, LARGEST) for each in values)
    if not (nodes and ranks and workers and local) or nodes * ranks * workers > LARGEST:
        raise ProtocolError("world: a count is zero, or too large")
    if first + local > nodes * ranks:
        raise ProtocolError(f"world: ranks {first} to {first + local - 1} of {nodes * ranks}")
    return HintWorld(nodes, ranks, workers, first, local)


def _order(values: Any) -> dict[str, Any]:
    known = {*_NUMBERS, *_CHOICES, "shuffle", "initial_nodes"}
    if not isinstance(values, dict) or values.keys() != known:
        raise ProtocolError(f"order: expected the keys {', '.join(sorted(known))}")
    for name, least in _NUMBERS.items():
        _number(name, values[name], least, _MOST.get(name, LARGEST))
    for name, choices in _CHOICES.items():
        if values[name] not in choices:
            raise ProtocolError(f"{name}: expected one of {', '.join(choices)}")
    if not isinstance(values["shuffle"], bool):
        raise ProtocolError("shuffle: expected true or false")
    if values["initial_nodes"] is not None:
        _number("initial_nodes", values["initial_nodes"], 1, LARGEST)
    return values


def _number(name: str, value: Any, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        shown = repr(value)
        raise ProtocolError(f"{name}: expected an integer from {least} to {most}, got {shown[:40]}")
    return value
