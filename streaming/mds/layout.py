"""The bytes of an MDS shard, and of one sample in it.

    u32 n · u32 off[n+1] · config (JSON) · sample 0 … sample n-1

Offsets are from the start of the file: sample i is off[i]:off[i+1], and off[n] is the file's size. A sample is one u32
per column of varying size (its bytes), then the columns one after the other, sorted by name. Nothing is read or written
here: functions take bytes and give bytes, or say where the bytes are.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from streaming.errors import IndexFormatError, ShardFormatError
from streaming.mds.encodings import UNSAFE, encoding_names, find_encoding
from streaming.mds.shards import VERSION, Schema

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    Buffer = bytes | bytearray | memoryview
    Encoder = Callable[[Mapping[str, Any]], bytes]
    Decoder = Callable[..., dict[str, Any]]

__all__ = [
    "MAX_SHARD_BYTES",
    "encode_shard",
    "head_size",
    "offsets_range",
    "read_offsets",
    "sample_decoder",
    "sample_encoder",
    "sample_range",
    "schema_of_columns",
    "shard_config",
]

# Offsets have 32 bits, and the last one is the file's size.
MAX_SHARD_BYTES = (1 << 32) - 1

_TWO_WORDS = struct.Struct("<II")


# ---- the shard -------------------------------------------------------------------------------------------------------


def shard_config(
    schema: Schema, compression: str | None, hashes: Sequence[str], size_limit: int | None
) -> dict[str, Any]:
    """What a shard says about itself: the index's entry without what only that shard has."""
    return schema.to_json() | {
        "compression": compression,
        "hashes": list(hashes),
        "size_limit": size_limit,
        "version": VERSION,
    }


def head_size(samples: int) -> int:
    """Bytes of the count and the offsets, before the config."""
    return 4 + 4 * (samples + 1)


def offsets_range(index: int) -> tuple[int, int]:
    """Where in the shard the two offsets of a sample are."""
    return 4 + 4 * index, 12 + 4 * index


def sample_range(words: Buffer, index: int, samples: int, size: int) -> tuple[int, int]:
    """(start, stop) of a sample from the 8 bytes at `offsets_range(index)`; checked against the shard's size."""
    start, stop = _TWO_WORDS.unpack(words)
    head = head_size(samples)
    if not head <= start <= stop <= size:
        raise ShardFormatError(
            f"sample {index}: expected offsets ascending between {head} and {size}, got {start} and {stop}"
        )
    return start, stop


def read_offsets(buffer: Buffer, samples: int, size: int) -> NDArray[np.int64]:
    """All samples+1 offsets from the start of a shard. Raises ShardFormatError where they are not its."""
    head = head_size(samples)
    if len(buffer) < head:
        raise ShardFormatError(f"expected a shard of at least {head} bytes, got {len(buffer)}")
    words = np.frombuffer(buffer, "<u4", samples + 2).astype(np.int64)
    if words[0] != samples:
        raise ShardFormatError(f"expected a shard of {samples} samples, got one of {words[0]}")
    offsets = words[1:]
    if offsets[0] < head or offsets[-1] != size:
        raise ShardFormatError(f"expected offsets from {head} or more to {size}, got {offsets[0]} to {offsets[-1]}")
    backwards = np.flatnonzero(np.diff(offsets) < 0)
    if len(backwards):
        at = int(backwards[0])
        raise ShardFormatError(f"sample {at}: expected ascending offsets, got {offsets[at]} and {offsets[at + 1]}")
    return offsets


def encode_shard(samples: Sequence[bytes], config: bytes) -> tuple[list[bytes], NDArray[np.int64]]:
    """The shard's bytes, in pieces, and its offsets. Raises ValueError where an offset would not fit its 32 bits."""
    offsets = np.empty(len(samples) + 1, np.int64)
    offsets[0] = head_size(len(samples)) + len(config)
    np.cumsum([len(sample) for sample in samples], out=offsets[1:])
    offsets[1:] += offsets[0]
    if offsets[-1] > MAX_SHARD_BYTES:
        raise ValueError(f"expected a shard of at most {MAX_SHARD_BYTES} bytes, got {offsets[-1]}: lower size_limit")
    head = struct.pack("<I", len(samples)) + offsets.astype("<u4").tobytes()
    return [head, config, *samples], offsets


# ---- one sample ------------------------------------------------------------------------------------------------------


def schema_of_columns(columns: Mapping[str, str]) -> Schema:
    """The schema of a writer's columns, sorted by name. Raises TypeError for an encoding that is not known."""
    names = sorted(columns)
    sizes = []
    for name in names:
        try:
            sizes.append(find_encoding(columns[name]).size)
        except TypeError as error:
            raise TypeError(
                f"MDSWriter passed column `{name}` with encoding `{columns[name]}` is unsupported. Supported encodings "
                f"are ndarray:DTYPE:SHAPE and {', '.join(encoding_names())}"
            ) from error
    return Schema("mds", tuple(names), tuple(columns[name] for name in names), tuple(sizes))


def sample_encoder(schema: Schema) -> Encoder:
    """A function from a sample to its bytes, with everything looked up that does not depend on the sample.

    It raises KeyError for a missing column, and TypeError, ValueError or OverflowError naming the column. Keys that are
    no column are ignored. A value that is `bytes` is stored as it is.
    """
    columns = [
        (name, find_encoding(encoding).encode, size)
        for name, encoding, size in zip(
            schema.column_names, schema.column_encodings, schema.column_sizes or (), strict=True
        )
    ]
    pack_lengths = struct.Struct(f"<{sum(size is None for _, _, size in columns)}I").pack

    def encode(sample: Mapping[str, Any]) -> bytes:
        lengths: list[int] = []
        parts = [b""]
        for name, encode_value, size in columns:
            data = sample[name]
            if not isinstance(data, bytes):
                try:
                    data = encode_value(data)
                except (TypeError, ValueError, OverflowError) as error:
                    raise _same_kind(error)(f"column {name!r}: {error}") from error
            if size is None:
                lengths.append(len(data))
            elif len(data) != size:
                raise ValueError(f"column {name!r}: expected {size} bytes, got {len(data)}")
            parts.append(data)
        try:
            parts[0] = pack_lengths(*lengths)
        except struct.error:
            raise ValueError(f"expected values under 4 GiB, got one of {max(lengths)} bytes") from None
        return b"".join(parts)

    return encode


def _same_kind(error: Exception) -> type[Exception]:
    """The builtin that the error is one of: subclasses like UnicodeEncodeError can't be made of a message alone."""
    return next(kind for kind in (TypeError, OverflowError, ValueError) if isinstance(error, kind))


def sample_decoder(schema: Schema, *, views: bool = False, allow_unsafe_types: bool = False) -> Decoder:
    """A function `decode(buffer, start=0, stop=None)` from a sample's bytes to its dictionary.

    By default no value refers to the buffer afterwards; with `views`, bytes come as memoryviews of it and arrays as
    views of it. The function raises ShardFormatError where the bytes are not such a sample. Raises IndexFormatError for
    an encoding that is not known or has another size, ValueError for `pkl` unless unsafe types are allowed.
    """
    columns = [
        (name, size, _value_decoder(name, encoding, size, views, allow_unsafe_types))
        for name, encoding, size in zip(
            schema.column_names, schema.column_encodings, schema.column_sizes or (), strict=True
        )
    ]
    lengths = struct.Struct(f"<{sum(size is None for _, size, _ in columns)}I")
    unpack_lengths, head = lengths.unpack_from, lengths.size

    def decode(buffer: Buffer, start: int = 0, stop: int | None = None) -> dict[str, Any]:
        view = memoryview(buffer)[start:stop]
        sample = {}
        name = None
        try:
            varying = iter(unpack_lengths(view))
            at = head
            for name, size, decode_value in columns:
                end = at + (next(varying) if size is None else size)
                sample[name] = decode_value(view[at:end])
                at = end
        except (ValueError, LookupError, ArithmeticError, OSError, EOFError, struct.error) as error:
            where = "sample" if name is None else f"column {name!r}"
            raise ShardFormatError(f"{where}: can't be decoded: {error}") from error
        if at != len(view):
            raise ShardFormatError(f"sample: expected columns of {len(view)} bytes, got {at}")
        return sample

    return decode


def _value_decoder(name: str, encoding: str, size: int | None, views: bool, unsafe: bool) -> Callable[[Any], Any]:
    if encoding in UNSAFE and not unsafe:
        raise ValueError(f"column {name!r}: {encoding} can run any code: pass allow_unsafe_types=True to decode it")
    try:
        found = find_encoding(encoding)
    except TypeError as error:
        raise IndexFormatError(f"column {name!r}: {error}") from None
    if found.size != size:
        raise IndexFormatError(f"column {name!r}: {encoding}: expected size {found.size}, got {size}")
    decode = found.decode
    # encodings registered by users may keep what they are given, and expect bytes
    if views or not getattr(found, "retains", True):
        return decode
    if encoding == "bytes":
        return bytes
    return lambda data: decode(bytes(data))
