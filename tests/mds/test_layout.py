"""MDS shards and samples: golden bytes, round trips, and damage that is named instead of read."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.errors import IndexFormatError, ShardFormatError
from streaming.mds.layout import (
    encode_shard,
    head_size,
    offsets_range,
    read_offsets,
    sample_decoder,
    sample_encoder,
    sample_range,
    schema_of_columns,
    shard_config,
)
from streaming.mds.shards import Schema

COLUMNS = {"x": "int", "t": "str", "b": "bytes"}
SCHEMA = schema_of_columns(COLUMNS)
CONFIG = json.dumps(shard_config(SCHEMA, None, [], 67108864), sort_keys=True).encode()


def shard(*samples: dict[str, Any]) -> bytes:
    """A shard of these samples."""
    encode = sample_encoder(SCHEMA)
    return b"".join(encode_shard([encode(sample) for sample in samples], CONFIG)[0])


EXAMPLE = shard({"x": 1, "t": "hi", "b": b"\0\xff\1"}, {"x": -2, "t": "", "b": b""})


def test_golden_bytes_of_a_shard() -> None:
    """The format to the bit: if this fails, datasets that exist can't be read any more."""
    config = (
        b'{"column_encodings": ["bytes", "str", "int"], "column_names": ["b", "t", "x"], '
        b'"column_sizes": [null, null, 8], "compression": null, "format": "mds", "hashes": [], '
        b'"size_limit": 67108864, "version": 2}'
    )
    assert (
        bytes.fromhex("02000000 d9000000 ee000000 fe000000")
        + config
        + bytes.fromhex("03000000 02000000 00ff01 6869 0100000000000000")
        + bytes.fromhex("00000000 00000000 feffffffffffffff")
    ) == EXAMPLE


def test_offsets_lead_to_samples() -> None:
    """All at once, and one by one from eight bytes."""
    offsets = read_offsets(EXAMPLE, 2, len(EXAMPLE))
    assert offsets.tolist() == [217, 238, 254]
    decode = sample_decoder(SCHEMA)
    for at, expected in enumerate(({"b": b"\0\xff\1", "t": "hi", "x": 1}, {"b": b"", "t": "", "x": -2})):
        start, stop = offsets_range(at)
        found = sample_range(EXAMPLE[start:stop], at, 2, len(EXAMPLE))
        assert found == (offsets[at], offsets[at + 1])
        assert decode(EXAMPLE, *found) == expected
        assert list(decode(EXAMPLE[found[0] : found[1]])) == ["b", "t", "x"]


@pytest.mark.parametrize(
    ("at", "word", "message"),
    [
        (0, 3, "of 2 samples, got one of 3"),
        (1, 3, "expected offsets from 16 or more to 254, got 3 to 254"),
        (2, 9, "sample 0: expected ascending offsets, got 217 and 9"),
        (2, 255, "sample 1: expected ascending offsets, got 255 and 254"),
        (3, 253, "to 254, got 217 to 253"),
        (3, 2**32 - 1, "got 217 to 4294967295"),
    ],
)
def test_offsets_that_are_not_its_own(at: int, word: int, message: str) -> None:
    """Counts, backward steps, ends elsewhere: shard-format, with the numbers."""
    data = bytearray(EXAMPLE)
    data[4 * at : 4 * at + 4] = word.to_bytes(4, "little")
    with pytest.raises(ShardFormatError, match=message):
        read_offsets(data, 2, len(data))


def test_a_shard_that_is_cut_short() -> None:
    """Fewer bytes than the offsets take."""
    with pytest.raises(ShardFormatError, match="at least 16 bytes, got 15"):
        read_offsets(EXAMPLE[:15], 2, len(EXAMPLE))


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 300), st.integers(0, 5000))
def test_one_samples_offsets_stay_in_the_shard(start: int, stop: int, samples: int, size: int) -> None:
    """Whatever the eight bytes say, a range comes out that is in the shard and behind its head, or an error."""
    words = start.to_bytes(4, "little") + stop.to_bytes(4, "little")
    if head_size(samples) <= start <= stop <= size:
        assert sample_range(words, 0, samples, size) == (start, stop)
    else:
        with pytest.raises(ShardFormatError, match="sample 7: expected offsets ascending"):
            sample_range(words, 7, samples, size)


def test_a_shard_over_four_gib_is_refused() -> None:
    """Its offsets would wrap around: the peer writes it so, and nobody can read it."""

    class Huge(bytes):
        def __len__(self) -> int:
            return 1 << 31

    with pytest.raises(ValueError, match="lower size_limit"):
        encode_shard([Huge(), Huge()], CONFIG)


@given(st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.text(st.characters(codec="utf-8")), st.binary())))
def test_any_samples_come_back(rows: list[tuple[int, str, bytes]]) -> None:
    """As values that own their bytes, and as views."""
    samples = [{"b": data, "t": text, "x": number} for number, text, data in rows]
    data = shard(*samples)
    offsets = read_offsets(data, len(rows), len(data)).tolist()
    for views in (False, True):
        decode = sample_decoder(SCHEMA, views=views)
        assert [decode(data, offsets[at], offsets[at + 1]) for at in range(len(rows))] == samples


def test_values_do_not_refer_to_the_buffer_unless_asked() -> None:
    """A cache may drop the bytes behind a mapping at any time: by default nothing may point there."""
    schema = schema_of_columns({"a": "ndarray:int16:2", "b": "bytes"})
    data = bytearray(sample_encoder(schema)({"a": np.array([1, 2], np.int16), "b": b"abc"}))
    owned = sample_decoder(schema)(data)
    shared = sample_decoder(schema, views=True)(data)
    data[:] = bytes(len(data))
    assert owned["b"] == b"abc"
    assert owned["a"].tolist() == [1, 2]
    assert type(owned["b"]) is bytes
    assert bytes(shared["b"]) == b"\0\0\0"
    assert shared["a"].tolist() == [0, 0]


@pytest.mark.parametrize("cut", range(1, 21))
def test_a_truncated_sample_is_never_short_data(cut: int) -> None:
    """Wherever the cut falls: an error, where the peer gives fewer bytes without a word."""
    sample = EXAMPLE[217:238]
    with pytest.raises(ShardFormatError):
        sample_decoder(SCHEMA)(sample[:-cut])
    with pytest.raises(ShardFormatError, match="expected columns of 22 bytes, got 21"):
        sample_decoder(SCHEMA)(sample + b"\0")


@pytest.mark.parametrize("size", [(1 << 24, 1 << 29), (1 << 31, 0), (0, 1 << 31), (3, 3)])
def test_a_picture_that_is_not_there_takes_no_memory(size: tuple[int, int]) -> None:
    """A declared size is compared with the bytes before room for it is made."""
    value = struct.pack("<III", *size, 1) + b"L"
    sample = struct.pack("<I", len(value)) + value
    with pytest.raises(ShardFormatError, match="column 'p'"):
        sample_decoder(schema_of_columns({"p": "pil"}))(sample)


@given(st.binary(max_size=80))
def test_any_bytes_are_a_sample_or_named(data: bytes) -> None:
    """Hostile bytes under every kind of column: a dictionary or a ShardFormatError, nothing else."""
    columns = {"a": "ndarray", "d": "str_decimal", "j": "json", "l": "list[pil]", "s": "str"}
    for some in (columns, {"x": "uint8", "s": "str"}, {"p": "pil"}, {"g": "png"}, {"n": "ndarray:int8"}):
        try:
            assert type(sample_decoder(schema_of_columns(some))(data)) is dict
        except ShardFormatError as error:
            assert error.code == "shard-format"  # noqa: PT017


def test_bytes_are_stored_as_they_are_in_any_column() -> None:
    """Converters rely on it; only a fixed size is checked."""
    schema = schema_of_columns({"p": "jpeg", "x": "int"})
    encode = sample_encoder(schema)
    assert encode({"p": b"\xff\xd8", "x": bytes(8), "more": "is ignored"}) == b"\2\0\0\0\xff\xd8" + bytes(8)
    with pytest.raises(ValueError, match="column 'x': expected 8 bytes, got 7"):
        encode({"p": b"", "x": bytes(7)})


def test_errors_name_the_column() -> None:
    """Of writing and of reading."""
    encode = sample_encoder(SCHEMA)
    with pytest.raises(TypeError, match="column 'x': expected int, got str"):
        encode({"x": "1", "t": "", "b": b""})
    with pytest.raises(ValueError, match="column 't': "):
        encode({"x": 1, "t": "\ud800", "b": b""})
    with pytest.raises(OverflowError, match="column 'x': "):
        encode({"x": 2**64, "t": "", "b": b""})
    with pytest.raises(KeyError, match="t"):
        encode({"x": 1, "b": b""})
    with pytest.raises(ShardFormatError, match="column 't': can't be decoded"):
        sample_decoder(SCHEMA)(bytes.fromhex("00000000 01000000 ff 0000000000000000"))
    with pytest.raises(TypeError, match="column `x` with encoding `nope` is unsupported"):
        schema_of_columns({"x": "nope"})


def test_a_decoder_is_only_made_for_what_the_index_may_say() -> None:
    """Encodings unknown here, sizes that the encoding does not have, and pickles unless they are allowed."""
    with pytest.raises(IndexFormatError, match="column 'x': unknown encoding 'nope'"):
        sample_decoder(Schema("mds", ("x",), ("nope",), (None,)))
    with pytest.raises(IndexFormatError, match="column 'x': int: expected size 8, got 4"):
        sample_decoder(Schema("mds", ("x",), ("int",), (4,)))
    pickled = schema_of_columns({"p": "pkl"})
    with pytest.raises(ValueError, match="allow_unsafe_types=True"):
        sample_decoder(pickled)
    data = sample_encoder(pickled)({"p": {1}})
    assert sample_decoder(pickled, allow_unsafe_types=True)(data) == {"p": {1}}
