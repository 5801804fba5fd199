"""The hint's document: what is written is read, anything else is refused. Without an engine."""

from __future__ import annotations

import contextlib
import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.engine.hint import VERSION, Hint, HintedStream, HintWorld, decode, encode, order_of, spec_of
from streaming.errors import ProtocolError
from streaming.hinting import Lane

from .conftest import spec_of as small_spec

SIZES = np.array([10, 0, 7], np.int64)
HINT = Hint(
    "run 7",
    (HintedStream(20, 0.5, dataset=3), HintedStream(17, 0.5, sizes=SIZES)),
    HintWorld(2, 4, 3, 4, 4),
    order_of(small_spec()),
    numpy="2.0",
)


def document(hint: Hint) -> memoryview:
    """Its bytes."""
    return memoryview(b"".join(encode(hint)))


def changed(**changes: Any) -> memoryview:
    """The document with another header; None takes a key away."""
    data = bytes(document(HINT))
    length = struct.unpack_from("<Q", data, 8)[0]
    header = {**json.loads(data[16 : 16 + length]), **changes}
    text = json.dumps({key: value for key, value in header.items() if value is not None}).encode()
    text += b" " * (-len(text) % 8)
    return memoryview(b"MDSHINT1" + struct.pack("<Q", len(text)) + text + data[16 + length :])


def test_round_trip() -> None:
    """Everything comes back, the sizes of streams elsewhere too."""
    found = decode(document(HINT))
    assert (found.job, found.world, found.numpy, dict(found.order)) == ("run 7", HINT.world, "2.0", dict(HINT.order))
    assert [(each.choose, each.proportion, each.dataset) for each in found.streams] == [(20, 0.5, 3), (17, 0.5, None)]
    assert found.streams[1].sizes is not None
    assert found.streams[1].sizes.tolist() == [10, 0, 7]
    spec = spec_of(found, [SIZES, SIZES])
    assert (spec.epoch_size, spec.batch_size, spec.seed) == (37, 4, 7)


def test_round_trip_of_ids() -> None:
    """Ids instead of an order."""
    ids = np.arange(2 * 3 * 5 * 4, dtype=np.int64).reshape(2, 3, 5, 4)
    found = decode(document(Hint("x", HINT.streams, HintWorld(1, 2, 3, 0, 2), ids=ids)))
    assert found.ids is not None
    assert np.array_equal(found.ids, ids)
    assert found.order == {}


def test_the_bytes() -> None:
    """They are a format: where they change, so must the version."""
    data = bytes(document(HINT))
    header = (
        b'{"version":1,"job":"run 7","numpy":"2.0","streams":[{"choose":20,"proportion":0.5,"dataset":3},'
        b'{"choose":17,"proportion":0.5,"shards":3}],"world":[2,4,3,4,4],"order":{"batch_size":4,"canonical_nodes":1,'
        b'"seed":7,"block_size":4000000,"sampling_granularity":1,"shuffle_algo":"py1e","partition_algo":"relaxed",'
        b'"batching_method":"random","sampling_method":"balanced","shuffle":true,"initial_nodes":null}}'
    )
    header += b" " * (-len(header) % 8)
    assert data == b"MDSHINT1" + struct.pack("<Q", len(header)) + header + SIZES.tobytes()
    assert VERSION == 1


ORDER = dict(HINT.order)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"version": 2}, "version"),
        ({"job": ""}, "job"),
        ({"job": "x" * 300}, "job"),
        ({"job": "a\nb"}, "job"),
        ({"job": 5}, "job"),
        ({"streams": []}, "streams"),
        ({"streams": [{}] * 20_000}, "streams"),
        ({"streams": [5]}, "streams"),
        ({"streams": [{"choose": -1, "proportion": 1, "dataset": 1}]}, "choose"),
        ({"streams": [{"choose": 1 << 40, "proportion": 1, "dataset": 1}]}, "choose"),
        ({"streams": [{"choose": 1, "proportion": -1, "dataset": 1}]}, "proportion"),
        ({"streams": [{"choose": 1, "proportion": float("nan"), "dataset": 1}]}, "proportion"),
        ({"streams": [{"choose": 1, "proportion": 1, "dataset": -1}]}, "dataset"),
        ({"streams": [{"choose": 1, "proportion": 1, "shards": 1 << 30}]}, "ends before"),
        ({"streams": [{"choose": 1, "proportion": 1}]}, "shards"),
        ({"world": [1, 1, 1, 0]}, "world"),
        ({"world": [1, 1, 0, 0, 1]}, "world"),
        ({"world": [1, 2, 1, 1, 2]}, "world"),
        ({"world": [1 << 20, 1 << 20, 1, 0, 1]}, "world"),
        ({"world": [1, True, 1, 0, 1]}, "world"),
        ({"order": None}, "either"),
        ({"ids": [4, 3, 1, 1]}, "either"),
        ({"order": {}}, "keys"),
        ({"order": {**ORDER, "batch_size": 0}}, "batch_size"),
        ({"order": {**ORDER, "canonical_nodes": 1 << 20}}, "canonical_nodes"),
        ({"order": {**ORDER, "shuffle_algo": "magic"}}, "shuffle_algo"),
        ({"order": {**ORDER, "shuffle_algo": ["py1e"]}}, "shuffle_algo"),
        ({"order": {**ORDER, "shuffle": 1}}, "shuffle"),
        ({"order": {**ORDER, "initial_nodes": 0}}, "initial_nodes"),
        ({"order": None, "ids": [4, 3, 1]}, "four sides"),
        ({"order": None, "ids": [4, 3, 1 << 30, 1 << 30]}, "too large"),
        ({"order": None, "ids": [5, 3, 1, 1]}, "another than"),
        ({"order": None, "ids": [4, 3, 0, 1]}, "integer"),
        ({"order": None, "ids": [4, 3, 5, 5]}, "ends before"),
    ],
)
def test_what_is_no_hint(changes: dict[str, Any], complaint: str) -> None:
    """Missing, negative, huge, of the wrong type, longer than the document: refused with the field's name."""
    with pytest.raises(ProtocolError, match=complaint):
        decode(changed(**changes))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"MDSHINT1",
        b"MDSHINT2" + bytes(100),
        b"MDSHINT1" + struct.pack("<Q", 1 << 60) + b"{}",
        b"MDSHINT1" + struct.pack("<Q", 8) + b"nonsense",
        b"MDSHINT1" + struct.pack("<Q", 16) + b"[1,2,3]         ",
        b"MDSHINT1" + struct.pack("<Q", 1 << 20) + b'{"a":' * (1 << 18),
        b"MDSHINT1" + struct.pack("<Q", 1 << 20) + b"[" * (1 << 20),
    ],
)
def test_what_is_no_document(data: bytes) -> None:
    """Cut off, foreign, lying about its length, nested a million deep."""
    with pytest.raises(ProtocolError):
        decode(memoryview(data))


@given(data=st.binary(max_size=200), at=st.integers(0, 800))
def test_damage_is_refused_or_harmless(data: bytes, at: int) -> None:
    """Any bytes anywhere: a hint, or a ProtocolError, nothing else."""
    whole = bytearray(document(HINT))
    at %= len(whole)
    whole[at : at + len(data)] = data
    with contextlib.suppress(ProtocolError):
        decode(memoryview(bytes(whole)))


@given(st.lists(st.lists(st.integers(-1, 3).map(lambda n: max(n, -1)), min_size=3, max_size=3), min_size=1))
def test_lanes(rows: list[list[int]]) -> None:
    """A lane's samples are those that are one, each in its own batch; gaps may be anywhere."""
    order = np.array(rows, np.int64)
    lane = Lane(order)
    expected = [(value, batch) for batch, row in enumerate(rows) for value in row if value >= 0]
    assert [(value, lane.batch_at(at)) for at, value in enumerate(lane.ids.tolist())] == expected
    assert lane.batches == len(rows)
    assert lane.stride % 3 == 0
