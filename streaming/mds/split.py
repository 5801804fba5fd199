"""The bytes of split shards (json, csv, tsv, xsv): a data file of text lines, and a meta file that says where they are.

    data: header line (not json) · one line a sample
    meta: u32 n · u32 off[n+1], positions in the data file · config (JSON)

Nothing is quoted: a value that holds the separator or the newline can't be stored.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from streaming.errors import IndexFormatError, ShardFormatError
from streaming.mds.layout import MAX_SHARD_BYTES, head_size
from streaming.mds.shards import SPLIT_FORMATS, Schema

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    Buffer = bytes | bytearray | memoryview
    Encoder = Callable[[Mapping[str, Any]], bytes]
    Decoder = Callable[..., dict[str, Any]]

__all__ = [
    "encode_split_shard",
    "header_line",
    "line_decoder",
    "line_encoder",
    "line_range",
    "read_line_offsets",
    "schema_of_lines",
    "separator_of",
]

_TYPES: dict[str, type] = {"str": str, "int": int, "float": float}
_SEPARATORS = {"csv": ",", "tsv": "\t"}
_TWO_WORDS = struct.Struct("<II")


# ---- the shard -------------------------------------------------------------------------------------------------------


def schema_of_lines(form: str, columns: Mapping[str, str], newline: str, separator: str | None = None) -> Schema:
    """The schema of a writer's columns. Raises TypeError or ValueError for what lines of text can't hold."""
    if form not in SPLIT_FORMATS:
        raise ValueError(f"expected one of {', '.join(sorted(SPLIT_FORMATS))}, got {form!r}")
    names = sorted(columns)
    for name in names:
        if columns[name] not in _TYPES:
            raise TypeError(f"column {name!r}: expected one of {', '.join(_TYPES)}, got {columns[name]!r}")
    schema = Schema(form, tuple(names), tuple(columns[name] for name in names), None, newline, separator)
    if not newline:
        raise ValueError("expected a newline of at least one character, got none")
    if form != "json":
        parted = separator_of(schema)
        if newline in parted or parted in newline:
            raise ValueError(f"expected a separator and a newline that differ, got {parted!r} and {newline!r}")
        for name in names:
            _check_text(f"column {name!r}: name", name, parted, newline)
    return schema


def separator_of(schema: Schema) -> str:
    """What stands between two values of a line. Raises IndexFormatError where the schema has none."""
    separator = _SEPARATORS.get(schema.format, schema.separator)
    if not separator:
        raise IndexFormatError(f"separator: expected a string for format {schema.format}, got {separator!r}")
    return separator


def header_line(schema: Schema) -> bytes:
    """What stands in the data file before the first sample."""
    if schema.format == "json":
        return b""
    return (separator_of(schema).join(schema.column_names) + _newline(schema)).encode()


def encode_split_shard(
    samples: Sequence[bytes], header: bytes, config: bytes
) -> tuple[list[bytes], list[bytes], NDArray[np.int64]]:
    """(data file, meta file, offsets in the data file), files in pieces. ValueError for offsets of over 32 bits."""
    offsets = np.empty(len(samples) + 1, np.int64)
    offsets[0] = len(header)
    np.cumsum([len(sample) for sample in samples], out=offsets[1:])
    offsets[1:] += len(header)
    if offsets[-1] > MAX_SHARD_BYTES:
        raise ValueError(f"expected a shard of at most {MAX_SHARD_BYTES} bytes, got {offsets[-1]}: lower size_limit")
    meta = [struct.pack("<I", len(samples)), offsets.astype("<u4").tobytes(), config]
    return [header, *samples], meta, offsets


def read_line_offsets(meta: Buffer, samples: int, size: int) -> NDArray[np.int64]:
    """All samples+1 positions in a data file of `size` bytes, from its meta file. Raises ShardFormatError."""
    head = head_size(samples)
    if len(meta) < head:
        raise ShardFormatError(f"expected a meta file of at least {head} bytes, got {len(meta)}")
    words = np.frombuffer(meta, "<u4", samples + 2).astype(np.int64)
    if words[0] != samples:
        raise ShardFormatError(f"expected a meta file of {samples} samples, got one of {words[0]}")
    offsets = words[1:]
    if offsets[-1] != size:
        raise ShardFormatError(f"expected lines up to {size}, got lines up to {offsets[-1]}")
    backwards = np.flatnonzero(np.diff(offsets) < 0)
    if len(backwards):
        at = int(backwards[0])
        raise ShardFormatError(f"sample {at}: expected ascending offsets, got {offsets[at]} and {offsets[at + 1]}")
    return offsets


def line_range(words: Buffer, index: int, size: int) -> tuple[int, int]:
    """(start, stop) of a line in a data file of `size` bytes, from the 8 bytes at `offsets_range` in the meta file."""
    start, stop = _TWO_WORDS.unpack(words)
    if not start <= stop <= size:
        raise ShardFormatError(f"sample {index}: expected offsets ascending up to {size}, got {start} and {stop}")
    return start, stop


# ---- one sample ------------------------------------------------------------------------------------------------------


def line_encoder(schema: Schema) -> Encoder:
    """A function from a sample to its line. It raises KeyError for a missing column, else naming the column."""
    newline = _newline(schema)
    columns = [(name, _TYPES[encoding]) for name, encoding in _columns(schema)]

    def json_line(sample: Mapping[str, Any]) -> bytes:
        values = {name: _typed(name, sample[name], kind) for name, kind in columns}
        return (json.dumps(values, sort_keys=True) + newline).encode()

    if schema.format == "json":
        return json_line
    separator = separator_of(schema)

    def parted_line(sample: Mapping[str, Any]) -> bytes:
        values = []
        for name, kind in columns:
            value = _typed(name, sample[name], kind)
            if isinstance(value, bool):  # would be written as True, which no reader takes for a number
                raise TypeError(f"column {name!r}: expected int, got bool")
            text = str(value)
            _check_text(f"column {name!r}", text, separator, newline)
            values.append(text)
        return (separator.join(values) + newline).encode()

    return parted_line


def line_decoder(schema: Schema) -> Decoder:
    """A function `decode(buffer, start=0, stop=None)` from a line to its sample; ShardFormatError where it is none."""
    newline = _newline(schema)
    columns = [(name, _TYPES[encoding]) for name, encoding in _columns(schema)]

    def json_sample(buffer: Buffer, start: int = 0, stop: int | None = None) -> dict[str, Any]:
        try:
            sample = json.loads(str(memoryview(buffer)[start:stop], "utf-8").removesuffix(newline))
        except (ValueError, RecursionError) as error:
            raise ShardFormatError(f"sample: expected a JSON object, got what can't be decoded: {error}") from error
        if type(sample) is not dict:
            raise ShardFormatError(f"sample: expected a JSON object, got {type(sample).__name__}")
        return sample

    if schema.format == "json":
        return json_sample
    separator = separator_of(schema)

    def parted_sample(buffer: Buffer, start: int = 0, stop: int | None = None) -> dict[str, Any]:
        try:
            text = str(memoryview(buffer)[start:stop], "utf-8")
            values = text.removesuffix(newline).split(separator)
            if not text.endswith(newline) or len(values) != len(columns):
                raise ValueError(f"expected {len(columns)} values and a newline, got {len(values)} values")
            return {name: kind(value) for (name, kind), value in zip(columns, values, strict=True)}
        except ValueError as error:
            raise ShardFormatError(f"sample: can't be decoded: {error}") from error

    return parted_sample


def _columns(schema: Schema) -> list[tuple[str, str]]:
    columns = list(zip(schema.column_names, schema.column_encodings, strict=True))
    for name, encoding in columns:
        if encoding not in _TYPES:
            raise IndexFormatError(f"column {name!r}: expected one of {', '.join(_TYPES)}, got {encoding!r}")
    return columns


def _newline(schema: Schema) -> str:
    if not schema.newline:
        raise IndexFormatError(f"newline: expected a string, got {schema.newline!r}")
    return schema.newline


def _typed(name: str, value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"column {name!r}: expected {kind.__name__}, got {type(value).__name__}")
    return value


def _check_text(what: str, text: str, separator: str, newline: str) -> None:
    for word, mark in (("separator", separator), ("newline", newline)):
        if mark in text:
            raise ValueError(f"{what}: expected text without the {word} {mark!r}, got {text[:80]!r}")
