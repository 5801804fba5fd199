"""Split shards: lines of text and where they are."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.errors import IndexFormatError, ShardFormatError
from streaming.mds.shards import Schema
from streaming.mds.split import (
    encode_split_shard,
    header_line,
    line_decoder,
    line_encoder,
    line_range,
    read_line_offsets,
    schema_of_lines,
)

COLUMNS = {"word": "str", "count": "int", "share": "float"}
SAMPLES = [{"word": "hi ž", "count": -1, "share": 0.1}, {"word": "", "count": 10**30, "share": float("inf")}]
TEXTS = {
    "json": b'{"count": -1, "share": 0.1, "word": "hi \\u017e"}\n',
    "csv": "-1,0.1,hi ž\n".encode(),
    "tsv": "-1\t0.1\thi ž\n".encode(),
    "xsv": "-1::0.1::hi ž\n".encode(),
}
HEADERS = {
    "json": b"",
    "csv": b"count,share,word\n",
    "tsv": b"count\tshare\tword\n",
    "xsv": b"count::share::word\n",
}


def schema(form: str, columns: dict[str, str] | None = None) -> Schema:
    """The usual columns in a format."""
    return schema_of_lines(form, columns or COLUMNS, "\n", "::" if form == "xsv" else None)


@pytest.mark.parametrize("form", list(TEXTS))
def test_golden_bytes(form: str) -> None:
    """Columns sorted, nothing quoted, a header of names before the lines that are parted by a separator."""
    lines = schema(form)
    header = header_line(lines)
    assert header == HEADERS[form]
    encode = line_encoder(lines)
    assert encode(SAMPLES[0] | {"more": "ignored"}) == TEXTS[form]
    data, meta, offsets = encode_split_shard([encode(sample) for sample in SAMPLES], header, b"{}")
    ends = [len(header), len(header) + len(TEXTS[form]), len(b"".join(data))]
    assert offsets.tolist() == ends
    assert b"".join(meta) == struct.pack("<4I", 2, *ends) + b"{}"


@pytest.mark.parametrize("form", list(TEXTS))
def test_samples_come_back(form: str) -> None:
    """From the whole data file, by the offsets of the meta file."""
    lines = schema(form)
    encode, decode = line_encoder(lines), line_decoder(lines)
    pieces, meta_pieces, _ = encode_split_shard([encode(sample) for sample in SAMPLES], header_line(lines), b"{}")
    data, meta = b"".join(pieces), b"".join(meta_pieces)
    offsets = read_line_offsets(meta, 2, len(data)).tolist()
    assert [decode(data, *offsets[at : at + 2]) for at in range(2)] == SAMPLES
    assert line_range(meta[4:12], 0, len(data)) == tuple(offsets[:2])


@given(st.text(st.characters(codec="utf-8", exclude_characters=",\n")), st.integers(), st.floats(allow_nan=False))
def test_any_values_come_back(word: str, count: int, share: float) -> None:
    """Whatever text holds neither separator nor newline."""
    sample = {"count": count, "share": share, "word": word}
    for form in ("csv", "json"):
        assert line_decoder(schema(form))(line_encoder(schema(form))(sample)) == sample


@pytest.mark.parametrize(
    ("form", "change", "error", "message"),
    [
        ("csv", {"word": "a,b"}, ValueError, "column 'word': expected text without the separator ','"),
        ("csv", {"word": "a\nb"}, ValueError, "column 'word': expected text without the newline"),
        ("xsv", {"word": "a::b"}, ValueError, "separator '::'"),
        ("csv", {"count": 1.5}, TypeError, "column 'count': expected int, got float"),
        ("json", {"count": 1.5}, TypeError, "column 'count': expected int, got float"),
        ("csv", {"share": 1}, TypeError, "column 'share': expected float, got int"),
        ("csv", {"count": True}, TypeError, "column 'count': expected int, got bool"),
    ],
)
def test_what_a_line_cannot_hold(form: str, change: dict[str, Any], error: type[Exception], message: str) -> None:
    """Named by column, not by an assertion."""
    with pytest.raises(error, match=message):
        line_encoder(schema(form))(SAMPLES[0] | change)


def test_schemas_that_lines_cannot_have() -> None:
    """Column types, names, newlines and separators are checked before the first sample."""
    with pytest.raises(TypeError, match="column 'a': expected one of str, int, float, got 'bytes'"):
        schema("csv", {"a": "bytes"})
    with pytest.raises(ValueError, match="name: expected text without the separator"):
        schema("csv", {"a,b": "str"})
    with pytest.raises(ValueError, match="expected a newline"):
        schema_of_lines("json", COLUMNS, "")
    with pytest.raises(ValueError, match="that differ"):
        schema_of_lines("xsv", COLUMNS, "\n", "\n")
    with pytest.raises(ValueError, match="got 'mds'"):
        schema_of_lines("mds", COLUMNS, "\n")
    with pytest.raises(IndexFormatError, match="separator"):
        line_decoder(Schema("xsv", ("a",), ("int",), None, "\n", None))
    with pytest.raises(IndexFormatError, match="newline"):
        line_decoder(Schema("csv", ("a",), ("int",), None, None, None))
    with pytest.raises(IndexFormatError, match="column 'a'"):
        line_decoder(Schema("csv", ("a",), ("bytes",), None, "\n", None))


@pytest.mark.parametrize("line", [b"", b"1,0.5\n", b"1,0.5,a,b\n", b"x,0.5,a\n", b"1,0.5,a", b"1,0.5,\xff\n"])
def test_lines_that_are_no_sample(line: bytes) -> None:
    """Too few values, too many, no numbers, no newline, no text."""
    with pytest.raises(ShardFormatError, match="sample: "):
        line_decoder(schema("csv"))(line)


@pytest.mark.parametrize("line", [b"", b"[1]\n", b"{", b"\xff", b"[" * 100_000])
def test_json_lines_that_are_no_sample(line: bytes) -> None:
    """Something else than an object."""
    with pytest.raises(ShardFormatError, match="expected a JSON object"):
        line_decoder(schema("json"))(line)


def test_offsets_that_are_not_its_own() -> None:
    """Of another count, another data file, or going backwards."""
    for words, message in (
        ((3, 0, 5, 9), "of 2 samples, got one of 3"),
        ((2, 0, 5, 8), "expected lines up to 9, got lines up to 8"),
        ((2, 7, 5, 9), "sample 0: expected ascending offsets, got 7 and 5"),
    ):
        with pytest.raises(ShardFormatError, match=message):
            read_line_offsets(struct.pack("<4I", *words), 2, 9)
    with pytest.raises(ShardFormatError, match="at least 16 bytes, got 3"):
        read_line_offsets(b"abc", 2, 9)
    with pytest.raises(ShardFormatError, match="sample 4: expected offsets ascending up to 9, got 5 and 10"):
        line_range(struct.pack("<2I", 5, 10), 4, 9)
