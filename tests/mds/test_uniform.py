"""The quick way through an index: byte for byte what the strict way gives, or nothing at all."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from streaming.mds.index import MAX_FILE_BYTES, MAX_SHARD_SAMPLES, parse_index, shown_index
from streaming.mds.tables import build_tables
from streaming.mds.uniform import UniformIndex
from tests.mds.test_index import SHA1, changed, csv, mds, text, zipped


def shards(count: int, *, compressed: bool = False, hashes: tuple[str, ...] = ("md5", "sha1")) -> list[dict[str, Any]]:
    """Entries that differ in name, sizes, counts and digests."""
    rng = random.Random(count)

    def file(name: str) -> dict[str, Any]:
        digests = {each: rng.randbytes({"md5": 16, "sha1": 20}[each]).hex() for each in hashes}
        return {"basename": name, "bytes": rng.randrange(10_000, 1 << 30), "hashes": digests}

    found = []
    for number in range(count):
        name = f"part{number % 3}/shard.{number:05}.mds" if count % 2 else f"shard.{number:05}.mds"
        entry = mds(number, hashes=list(hashes), raw_data=file(name), samples=rng.randrange(800))
        if compressed:
            entry |= {"compression": "zstd:7", "zip_data": file(f"{name}.zstd")}
        found.append(entry)
    return found


@pytest.mark.parametrize("count", [1, 2, 7, 17_000])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("hashes", [(), ("sha1",), ("md5", "sha1")])
def test_the_same_bytes_as_the_strict_way(count: int, compressed: bool, hashes: tuple[str, ...]) -> None:
    """Tables and the index as shown, with and without compression, hashes and folders."""
    if count > 7 and hashes != ("sha1",):
        return
    entries = shards(count, compressed=compressed, hashes=hashes)
    for data in (text(*entries), json.dumps({"version": 2, "shards": entries}, separators=(",", ":")).encode()):
        found, index = UniformIndex.read(data), parse_index(data)
        assert found is not None
        assert b"".join(found.tables()) == b"".join(build_tables(index))
        if compressed:
            assert b"".join(found.shown()) == shown_index(data, index)
        assert int(found.samples.sum()) == index.samples
        assert found.stored_bytes.tolist() == [(each.zip_data or each.raw_data).bytes for each in index.shards]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("samples", -1),
        ("samples", 1.0),
        ("samples", MAX_SHARD_SAMPLES + 1),
        ("samples", 500),  # more than 1000 bytes can hold
        ("raw_data.bytes", MAX_FILE_BYTES + 1),
        ("raw_data.bytes", "1000"),
        ("raw_data.basename", "shard.00000.mds"),  # the first one's
        ("raw_data.basename", "shard.00002.mds/x"),  # a file below a file
        ("raw_data.basename", "a/../b"),
        ("raw_data.basename", "../b"),
        ("raw_data.basename", ".partial/b"),
        ("raw_data.basename", "a/index.json"),
        ("raw_data.basename", "index.json"),
        ("raw_data.basename", "x" * 256),
        ("raw_data.basename", "a\\b"),
        ("raw_data.basename", "ž"),
        ("raw_data.hashes", {}),
        ("raw_data.hashes.sha1", "A" * 40),
        ("raw_data.hashes.sha1", SHA1 + "0"),
        ("raw_data.extra", 1),
        ("version", 3),
        ("size_limit", 5),
        ("column_names", ["a", "x"]),
        ("compression", "zstd"),
    ],
)
def test_whatever_is_different_is_left_to_the_strict_way(path: str, value: Any) -> None:
    """A shard that is unlike the first one, or breaks a rule, in any of its values: no quick answer."""
    good = [mds(number) for number in range(3)]
    assert UniformIndex.read(text(*good)) is not None
    assert UniformIndex.read(text(good[0], changed(good[1], path, value), good[2])) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        text(),
        text(csv()),
        text(mds(), version=3),
        text(mds(), mds(1), zipped(2)),
        text(mds())[:-1],
        text(mds()) + b"x",
        text(mds()).replace(b"}], ", b"},], "),
        text(mds(), mds(1)).replace(b"}, {", b"} {"),
        text(mds(), mds(1)).replace(b"}, {", b"}{"),
        text(mds(), mds(1)).replace(b"}, {", b"},, {"),
        text(mds())[:-1] + b', "version": 2}',
        json.dumps({"shards": [mds()]}).encode(),
        json.dumps({"version": 2, "shards": [mds()]}, indent=1).encode(),
    ],
)
def test_any_other_text_is_left_to_the_strict_way(data: bytes) -> None:
    """What is no index, cut off, or laid out in another way."""
    assert UniformIndex.read(data) is None


def test_totals_that_overflow_are_left_to_the_strict_way() -> None:
    """Sizes that are fine each, and too much together."""
    one = changed(mds(), "raw_data.bytes", MAX_FILE_BYTES)
    many = [changed(one, "raw_data.basename", f"{number}") for number in range((1 << 14) + 1)]
    assert UniformIndex.read(text(*many)) is None
