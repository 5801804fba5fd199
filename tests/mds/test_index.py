"""index.json: exact bytes out, and nothing taken on trust on the way in."""

from __future__ import annotations

import contextlib
import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.errors import IndexFormatError
from streaming.mds.index import MAX_FILE_BYTES, Index, dump_index, parse_index, shown_index

SHA1 = "0123456789" * 4


def mds(number: int = 0, **changes: Any) -> dict[str, Any]:
    """A good MDS entry."""
    return {
        "column_encodings": ["bytes", "int"],
        "column_names": ["b", "x"],
        "column_sizes": [None, 8],
        "compression": None,
        "format": "mds",
        "hashes": ["sha1"],
        "raw_data": {"basename": f"shard.{number:05}.mds", "bytes": 1000, "hashes": {"sha1": SHA1}},
        "samples": 3,
        "size_limit": 67108864,
        "version": 2,
        "zip_data": None,
    } | changes


def zipped(number: int = 0) -> dict[str, Any]:
    """A good compressed entry."""
    stored = {"basename": f"shard.{number:05}.mds.zstd", "bytes": 500, "hashes": {"sha1": SHA1}}
    return mds(number, compression="zstd:7", zip_data=stored)


def csv(number: int = 0) -> dict[str, Any]:
    """A good entry of a split format."""
    entry = mds(number, format="csv", newline="\n", zip_meta=None)
    del entry["column_sizes"]
    entry["raw_data"] = entry["raw_data"] | {"basename": f"shard.{number:05}.csv"}
    entry["raw_meta"] = entry["raw_data"] | {"basename": f"shard.{number:05}.csv.meta", "bytes": 200}
    return entry


def text(*shards: Any, version: Any = 2) -> bytes:
    """An index.json as writers write it."""
    return json.dumps({"shards": list(shards), "version": version}, sort_keys=True).encode()


def changed(entry: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The entry with one value replaced."""
    entry = copy.deepcopy(entry)
    *folders, last = path.split(".")
    place = entry
    for folder in folders:
        place = place[folder]
    place[last] = value
    return entry


def test_what_is_read_is_written_again_to_the_byte() -> None:
    """parse then dump gives the same bytes, for every format and for none."""
    xsv = changed(csv(4) | {"separator": "::"}, "format", "xsv")
    columns = {key: value for key, value in csv(5).items() if not key.startswith("column_")}
    lines = columns | {"format": "json", "columns": {"a": "int", "b": "str"}}
    for shards in ([], [mds()], [zipped(), mds(1)], [csv(), xsv, lines]):
        for number, shard in enumerate(shards):
            for key in ("raw_data", "raw_meta", "zip_data"):
                if shard.get(key):
                    shard[key] = shard[key] | {"basename": f"{number}.{key}"}
        data = text(*shards)
        assert dump_index(parse_index(data).shards) == data


def test_the_fields_of_a_shard() -> None:
    """An entry's values are where the names say, and shards that agree share one schema."""
    first, second = parse_index(text(zipped(), mds(1))).shards
    assert (first.format, first.samples, first.version, first.size_limit) == ("mds", 3, 2, 67108864)
    assert first.column_sizes == (None, 8)
    assert first.compression == "zstd:7"
    assert first.zip_data is not None
    assert first.zip_data.basename == "shard.00000.mds.zstd"
    assert second.zip_data is None
    assert first.schema is second.schema


def test_shown_index_is_the_original_where_nothing_is_compressed() -> None:
    """Bytes that another writer laid out differently stay as they are."""
    data = json.dumps({"version": 2, "shards": [mds()]}, indent=1).encode()
    assert shown_index(data) == data


def test_shown_index_has_no_compression() -> None:
    """Compressed entries are shown raw; sizes and hashes of the raw files stay."""
    shown = parse_index(shown_index(text(zipped(), mds(1)))).shards
    assert [(shard.compression, shard.zip_data) for shard in shown] == [(None, None)] * 2
    assert shown[0].raw_data.hashes == {"sha1": SHA1}


@pytest.mark.parametrize(
    "name",
    [
        "../shard.mds", "/etc/passwd", "a/../../b", "a//b", "a/", ".", "..", "./a", "", "a\0b", "a\\b", "..\\b",
        ".mdsfs", ".mdsfs/status", ".partial/x", "index.json", "part/index.json", "index.json/x", "\ud800",
        "n" * 256, "d/" * 2048 + "f", 7, None, ["x"],
    ],
    ids=lambda name: ascii(name)[:20],
)  # fmt: skip
@pytest.mark.parametrize("key", ["raw_data", "zip_data"])
def test_hostile_basenames_are_refused(key: str, name: Any) -> None:
    """A path that leaves the dataset, is not one, or is taken by the dataset's folder: shard and key are named."""
    with pytest.raises(IndexFormatError, match=rf"shard 1: {key}\.basename: expected .*, got "):
        parse_index(text(mds(0), changed(zipped(1), f"{key}.basename", name)))


def test_basenames_in_sub_directories_are_read() -> None:
    """Merged datasets name shards part0/shard.00000.mds."""
    entry = changed(mds(), "raw_data.basename", "part0/deep/shard.00000.mds")
    assert parse_index(text(entry)).shards[0].raw_data.basename == "part0/deep/shard.00000.mds"


@pytest.mark.parametrize(
    ("first", "second"),
    [("same", "same"), ("a", "a/b"), ("a/b", "a"), ("a/b/c", "a/b"), ("a", "a/b/c")],
)
def test_no_two_files_share_a_place(first: str, second: str) -> None:
    """A name used twice, or as a file and as a folder, names both shards."""
    shards = [changed(mds(number), "raw_data.basename", name) for number, name in enumerate((first, second))]
    with pytest.raises(IndexFormatError, match=r"shard 1: raw_data.basename: .*shard 0"):
        parse_index(text(*shards))


def test_raw_and_stored_names_may_not_collide() -> None:
    """One shard's stored file may not be another's raw file."""
    with pytest.raises(IndexFormatError, match=r"shard 1: raw_data.basename"):
        parse_index(text(zipped(0), changed(mds(1), "raw_data.basename", "shard.00000.mds.zstd")))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("version", 3), ("version", True), ("version", "2"), ("format", "parquet"), ("format", ["mds"]),
        ("samples", -1), ("samples", 1.0), ("samples", True), ("samples", 1 << 32), ("samples", 10**30),
        ("size_limit", -1), ("size_limit", "64mb"), ("compression", "lz4"), ("compression", "zstd:23"),
        ("compression", 3), ("compression", None), ("hashes", "sha1"), ("hashes", ["sha0"]), ("hashes", [1]),
        ("hashes", []), ("column_names", "bx"), ("column_names", ["b", "b"]),
        ("column_encodings", ["bytes"]),
        ("column_encodings", ["bytes", 1]), ("column_sizes", [None]), ("column_sizes", [None, -8]),
        ("column_sizes", None), ("raw_data", None), ("raw_data", []), ("raw_data.bytes", -1),
        ("raw_data.bytes", MAX_FILE_BYTES + 1), ("raw_data.bytes", 10**400), ("raw_data.bytes", 55),
        ("raw_data.bytes", "1000"), ("raw_data.hashes", {}), ("raw_data.hashes", {"md5": "0" * 32}),
        ("raw_data.hashes", {"sha1": SHA1[:-1]}), ("raw_data.hashes", {"sha1": SHA1[:-1] + "G"}),
        ("raw_data.hashes", None), ("zip_data", None), ("zip_data.bytes", None), ("zip_data.extra", 1), ("extra", 1),
    ],
    ids=lambda value: ascii(value)[:24],
)  # fmt: skip
def test_every_violation_names_shard_and_key(path: str, value: Any) -> None:
    """Wrong types, values out of range, sizes that do not add up, keys that are too many."""
    with pytest.raises(IndexFormatError, match=rf"^shard 1: .*{path.split('.')[0]}") as caught:
        parse_index(text(zipped(0), changed(zipped(1), path, value)))
    assert "expected" in str(caught.value)
    assert "got" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("key", sorted(zipped()))
def test_every_missing_key_is_named(key: str) -> None:
    """No key of an entry has a default."""
    entry = zipped()
    del entry[key]
    with pytest.raises(IndexFormatError, match=rf"shard 0: .*{key}"):
        parse_index(text(entry))


def test_compressed_meta_must_be_there() -> None:
    """A compressed split shard has two stored files."""
    entry = changed(csv(), "compression", "gz") | {"zip_data": zipped()["zip_data"]}
    with pytest.raises(IndexFormatError, match="shard 0: zip_meta: expected a file, for compression is gz"):
        parse_index(text(entry))


def test_a_raw_shard_may_not_have_a_stored_file() -> None:
    """zip_data without compression would be fetched by nobody."""
    with pytest.raises(IndexFormatError, match="shard 0: zip_data: expected null"):
        parse_index(text(mds() | {"zip_data": zipped()["zip_data"]}))


@pytest.mark.parametrize(
    "data",
    [
        b"", b" ", b"null", b"[]", b"{}", b'{"shards": []}', b'{"version": 2}', b'{"shards": {}, "version": 2}',
        b'{"shards": [], "version": 2} x', b'{"shards": [], "version": 2', b'{"shards": [,], "version": 2}',
        b'{"shards": [], "shards": [], "version": 2}', b'{"shards": [1], "version": 2}', b'{"a": 1}', b"\xff\xfe",
        b'{"shards": [NaN], "version": 2}', b"[" * 200_000, b'{"shards": [' + b"[" * 200_000,
        b'{"shards": [' + b"9" * 5000 + b'], "version": 2}', b'{"shards": [{}', b'\xef\xbb\xbf{"shards": []}',
    ],
    ids=lambda data: ascii(data)[:24],
)  # fmt: skip
def test_what_is_no_index_is_refused(data: bytes) -> None:
    """Broken, deep or foreign JSON is a named error, never another exception."""
    with pytest.raises(IndexFormatError, match="expected"):
        parse_index(data)


def test_another_version_is_told_before_anything_else() -> None:
    """Version 3 may look different altogether: the number is in the text."""
    with pytest.raises(IndexFormatError, match=r"^Unsupported streaming data version: 3\. Expected version 2\."):
        parse_index(text({"whatever": 1}, version=3))


def test_an_index_of_absurd_length_is_not_parsed() -> None:
    """The bound is looked at before the bytes are."""
    with pytest.raises(IndexFormatError, match="expected at most 10 bytes, got 28"):
        parse_index(text(), max_bytes=10)


def test_all_files_together_fit_int64() -> None:
    """Sums over a dataset never overflow."""
    shards = [changed(mds(number), "raw_data.bytes", MAX_FILE_BYTES) for number in range(20_000)]
    with pytest.raises(IndexFormatError, match="in all files"):
        parse_index(text(*shards))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def parsed_or_refused(data: bytes) -> Index | None:
    """The index, or None after an IndexFormatError; every other exception passes."""
    with contextlib.suppress(IndexFormatError):
        return parse_index(data)
    return None


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_value_anywhere_is_accepted_or_named(data: st.DataObject) -> None:
    """Replacing any value of a good index by any other gives an index or an IndexFormatError, nothing else."""
    entry = data.draw(st.sampled_from([mds(), zipped(), csv()]))
    paths = [*entry, "raw_data.bytes", "raw_data.basename", "raw_data.hashes", "raw_data.hashes.sha1"]
    entry = changed(entry, data.draw(st.sampled_from(paths)), data.draw(JSON))
    index = parsed_or_refused(text(entry))
    assert index is None or parse_index(dump_index(index.shards)) == index


@settings(max_examples=200, deadline=None)
@given(st.integers(min_value=0), st.binary(max_size=4), st.integers(min_value=0, max_value=4))
def test_damaged_text_is_accepted_or_named(at: int, put: bytes, cut: int) -> None:
    """An index with bytes replaced, cut or added is an index or an IndexFormatError, nothing else."""
    good = text(zipped(), csv(1))
    at %= len(good)
    parsed_or_refused(good[:at] + put + good[at + cut :])
