"""The dataset tables: the same facts as the index, without parsing it."""

from __future__ import annotations

import json
import math
import mmap
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.errors import DatasetError
from streaming.mds.index import parse_index
from streaming.mds.tables import ROLE_DATA, ROLE_META, ROLE_OBJECT, build_tables, load_tables, objects_tables
from tests.mds.test_index import SHA1, csv, mds, text, zipped

if TYPE_CHECKING:
    from pathlib import Path


def test_rows_say_what_the_index_says() -> None:
    """Names, keys, sizes, roles, hashes and schemas of raw, compressed and split shards."""
    index = parse_index(text(mds(0), zipped(1), csv(2)))
    tables = load_tables(b"".join(build_tables(index)))
    assert tables.kind == "mds"
    assert list(tables.names()) == ["shard.00000.mds", "shard.00001.mds", "shard.00002.csv", "shard.00002.csv.meta"]
    assert [tables.name(at) for at in range(4)] == list(tables.names())
    assert tables.key(0) == "shard.00000.mds"
    assert tables.key(1) == "shard.00001.mds.zstd"
    assert tables.files["size"].tolist() == [1000, 1000, 1000, 200]
    assert tables.files["stored"].tolist() == [1000, 500, 1000, 200]
    assert [tables.compression(at) for at in range(4)] == [None, "zstd:7", None, None]
    assert tables.files["role"].tolist() == [ROLE_DATA, ROLE_DATA, ROLE_DATA, ROLE_META]
    assert tables.files["shard"].tolist() == [0, 1, 2, 2]
    assert tables.shards["file"].tolist() == [0, 1, 2]
    assert tables.hashes(1) == {"sha1": SHA1}
    assert tables.hashes(1, "zip") == {"sha1": SHA1}
    assert tables.hashes(0, "zip") == {}
    assert [tables.schema(at)["format"] for at in range(3)] == ["mds", "mds", "csv"]
    assert tables.schema(0)["column_sizes"] == [None, 8]
    assert tables.samples == 9
    assert tables.etag(0) is None


def test_hashes_may_differ_between_shards() -> None:
    """A merged dataset has shards with other hashes, or none: each file answers with its own."""
    bare = mds(1, hashes=[])
    bare["raw_data"] = bare["raw_data"] | {"hashes": {}}
    tables = load_tables(b"".join(build_tables(parse_index(text(mds(0), bare)))))
    assert tables.hashes(0) == {"sha1": SHA1}
    assert tables.hashes(1) == {}


def test_objects_keep_their_etags_and_times() -> None:
    """Objects that belong to no shard are shown as they are."""
    tables = load_tables(b"".join(objects_tables([("a/ž", "a/ž", 5, 7, '"e"'), ("b", "b", 0, 0, None)])))
    assert tables.kind == "objects"
    assert (tables.name(0), tables.key(0), tables.etag(0), tables.etag(1)) == ("a/ž", "a/ž", '"e"', None)
    assert tables.files["role"].tolist() == [ROLE_OBJECT] * 2
    assert tables.files["mtime"].tolist() == [7, 0]
    assert (tables.samples, len(tables.shards)) == (0, 0)


def test_a_dataset_of_nothing() -> None:
    """No shards and no objects are tables too."""
    for pieces in (build_tables(parse_index(text())), objects_tables([])):
        tables = load_tables(b"".join(pieces))
        assert (len(tables.files), tables.samples, list(tables.names())) == (0, 0, [])
        assert tables.bitmap_at.tolist() == [0]


@given(st.lists(st.integers(min_value=0, max_value=1 << 40), max_size=6))
def test_bitmaps_are_whole_words_of_64_blocks(sizes: list[int]) -> None:
    """The bitmap of a file has ceil(ceil(size / 4096) / 64) words of 8 bytes, one after the other."""
    tables = load_tables(b"".join(objects_tables([(str(at), str(at), size, 0, None) for at, size in enumerate(sizes)])))
    words = [math.ceil(math.ceil(size / 4096) / 64) for size in sizes]
    assert np.diff(tables.bitmap_at).tolist() == [8 * count for count in words]


@given(st.lists(st.integers(min_value=0, max_value=4), min_size=1, max_size=8))
def test_samples_are_found_in_their_shards(counts: list[int]) -> None:
    """shard_of_sample agrees with counting, shards without samples included."""
    shards = [mds(number, samples=count) for number, count in enumerate(counts)]
    tables = load_tables(b"".join(build_tables(parse_index(text(*shards)))))
    expected = [(shard, at) for shard, count in enumerate(counts) for at in range(count)]
    shard, at = tables.shard_of_sample(np.arange(len(expected)))
    assert list(zip(shard.tolist(), at.tolist(), strict=True)) == expected
    for wrong in (-1, len(expected)):
        with pytest.raises(IndexError, match="sample ids"):
            tables.shard_of_sample([wrong])


def test_tables_are_views_of_a_mapped_file(tmp_path: Path) -> None:
    """Loading copies nothing and nothing can be written through it."""
    path = tmp_path / "tables"
    path.write_bytes(b"".join(build_tables(parse_index(text(zipped())))))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        tables = load_tables(mapped)
        assert not tables.files.flags.owndata
        assert not tables.files.flags.writeable
        assert tables.name(0) == "shard.00000.mds"
        del tables


@pytest.mark.parametrize("keep", [0, 7, 15, 40, 300, -1])
def test_truncated_tables_are_refused(keep: int) -> None:
    """A file that a crash cut short is an error that says what to do."""
    data = b"".join(build_tables(parse_index(text(zipped()))))
    with pytest.raises(DatasetError, match="open again"):
        load_tables(data[: keep if keep >= 0 else len(data) - 64])


def test_ten_thousand_shards_are_quick() -> None:
    """A tenth of the size that must take under 1.5 s: parsing and building stay linear and light.

    In the thread's own time: what others do meanwhile is no part of it.
    """
    data = text(*(zipped(number) for number in range(10_000)))
    started = time.thread_time()
    json.loads(data)
    bare = time.thread_time() - started
    started = time.thread_time()
    tables = load_tables(b"".join(build_tables(parse_index(data))))
    assert time.thread_time() - started < 10 * bare + 0.5
    assert len(tables.shards) == 10_000
