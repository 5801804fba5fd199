"""Writes datasets, shard by shard, into a folder, a remote, or both.

The arguments and the bytes are mosaicml-streaming's; what its writer corrupts without a word is refused here. zstd
shards are written seekable (`frame`), so that a reader of one sample need not fetch the whole shard.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from streaming.errors import UnsupportedSourceError
from streaming.locations import instead_of, scheme_of
from streaming.mds.compression import compress, extension, split_compression
from streaming.mds.hashing import hash_all, normalize_hashes
from streaming.mds.index import dump_index
from streaming.mds.layout import MAX_SHARD_BYTES, encode_shard, sample_encoder, schema_of_columns, shard_config
from streaming.mds.seekable import DEFAULT_FRAME, compress_seekable, frame_size, plan_frames
from streaming.mds.shards import FileInfo, Schema, ShardInfo
from streaming.mds.split import encode_split_shard, header_line, line_encoder, schema_of_lines
from streaming.sizes import parse_size
from streaming.writer_files import ShardFolder
from streaming.writer_upload import Uploader

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    import numpy as np
    from numpy.typing import NDArray

    Out = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

__all__ = ["CSVWriter", "JSONWriter", "MDSWriter", "TSVWriter", "Writer", "XSVWriter"]


@dataclass(frozen=True, slots=True)
class _Settings:
    """The arguments that only some writers need."""

    progress_bar: bool = False
    max_workers: int | None = None
    retry: int | None = None
    exist_ok: bool = False
    remote: str | None = None
    frame: int | str | None = DEFAULT_FRAME

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> _Settings:
        unknown = sorted(arguments.keys() - set(cls.__slots__))
        if unknown:
            raise ValueError(f"Invalid Writer argument(s): {unknown}. Expected {', '.join(cls.__slots__)}")
        return cls(**arguments)

    def frame_bytes(self) -> int | None:
        """Raw bytes that a frame has at most; None for a frame a sample."""
        return frame_size(self.frame)


class Writer(ABC):
    """What all writers share: samples gather until a shard is full; the index comes last.

    `out` is a folder, a URL, or (folder, URL); with a URL every shard is uploaded as soon as it is written, and removed
    here afterwards unless `keep_local`. `size_limit` None or 0 never starts a second shard. Further arguments:
    `exist_ok` replaces a dataset that is in the folder, `remote` is the URL beside a folder in `out` (whose files stay
    by default), `max_workers` threads upload with `retry` attempts each, `progress_bar` shows them, `frame` (zstd only)
    is the size of a frame before compression, or 'sample' for one frame a sample.

    As a context manager it finishes also when the body raised, as mosaicml-streaming's writers do: the index then names
    what was written. There is no index after the writer itself failed.
    """

    format: ClassVar[str]
    extra_bytes_per_sample = 0

    def __init__(
        self,
        schema: Schema,
        *,
        out: Out,
        keep_local: bool | None = None,
        compression: str | None = None,
        hashes: str | Iterable[str] | None = None,
        size_limit: int | str | None = 1 << 26,
        **kwargs: Any,
    ) -> None:
        settings = _Settings.of(kwargs)
        self.schema = schema
        self.compression = compression or None
        self.hashes = list(normalize_hashes(hashes))
        self.size_limit = _limit(size_limit)
        self.keep_local = settings.remote is not None if keep_local is None else keep_local
        self._frame = settings.frame_bytes()
        if self.compression is not None:
            if split_compression(self.compression)[0] != "zstd" and "frame" in kwargs:
                raise ValueError(f"frame: expected compression zstd, got {self.compression}")
            compress(self.compression, b"")  # a codec that is not installed is said now, not after the first shard
        self._config = json.dumps(self.get_config(), sort_keys=True).encode("ascii")
        self.extra_bytes_per_shard = self._shard_overhead()
        self._infos: list[ShardInfo] = []
        self._finished = self._failed = False
        self._reset()
        local, self.remote = _places(out, settings.remote)
        self._uploader = self.remote and Uploader(
            self.remote,
            max_workers=settings.max_workers,
            attempts=settings.retry,
            progress_bar=settings.progress_bar,
        )
        try:
            self._folder = ShardFolder(local, exist_ok=settings.exist_ok)
        except BaseException:
            self.cancel_future_jobs()
            raise

    # -- what formats differ in

    @abstractmethod
    def encode_sample(self, sample: Mapping[str, Any]) -> bytes:
        """The sample's bytes. Raises KeyError, TypeError, ValueError or OverflowError naming the column."""

    @abstractmethod
    def _shard_overhead(self) -> int:
        """Bytes that count towards the size limit before the first sample."""

    @abstractmethod
    def _encode_shard(self) -> list[tuple[str, list[bytes], NDArray[np.int64] | None]]:
        """The shard's files: (name's suffix, bytes in pieces, where its samples begin and the last ends)."""

    # -- writing

    @property
    def local(self) -> str:
        """The folder."""
        return str(self._folder.path)

    @property
    def shards(self) -> list[dict[str, Any]]:
        """The shards written so far, as the index will name them."""
        return [info.to_json() for info in self._infos]

    def get_config(self) -> dict[str, Any]:
        """What each shard says about itself."""
        return shard_config(self.schema, self.compression, self.hashes, self.size_limit)

    def write(self, sample: Mapping[str, Any]) -> None:
        """Adds a sample; before that, writes the shard that it does not fit into any more."""
        if self._finished:
            raise ValueError("the writer is finished: open a new one to write more samples")
        if self._uploader:
            self._guarded(self._uploader.check)
        data = self.encode_sample(sample)
        size = len(data) + self.extra_bytes_per_sample
        if self.size_limit and self.size_limit < self.new_shard_size + size:
            self.flush_shard()
        if self.new_shard_size + size > MAX_SHARD_BYTES:
            raise ValueError(
                f"expected a shard of at most {MAX_SHARD_BYTES} bytes, got {self.new_shard_size + size}: "
                "set size_limit, or write smaller samples"
            )
        self.new_samples.append(data)
        self.new_shard_size += size

    def flush_shard(self) -> None:
        """Writes the samples gathered so far as a shard; nothing where there are none."""
        if self.new_samples:
            self._guarded(self._flush)

    def finish(self) -> None:
        """Writes the last shard, waits for the uploads, then writes the index. Once is enough."""
        if self._finished:
            return
        try:
            self.flush_shard()
            self._guarded(self._publish)
        finally:
            self._finished = True
            if self._uploader:
                self._uploader.close(cancel=self._failed)
            if self._folder.is_temporary or (self.remote and not self.keep_local and not self._failed):
                self._folder.remove()

    def cancel_future_jobs(self) -> None:
        """Gives up: uploads that have not begun don't, and there will be no index."""
        self._failed = self._finished = True
        if self._uploader:
            self._uploader.close(cancel=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._failed:
            self.cancel_future_jobs()
        else:
            self.finish()

    # -- inside

    def _reset(self) -> None:
        self.new_samples: list[bytes] = []
        self.new_shard_size = self.extra_bytes_per_shard

    def _guarded(self, action: Any) -> None:
        """Does it, and remembers if it failed: no index may follow then."""
        try:
            action()
        except BaseException:
            self._failed = True
            raise

    def _flush(self) -> None:
        stem = f"shard.{len(self._infos):05}.{self.format}"
        pairs = [self._write_file(stem + suffix, pieces, cuts) for suffix, pieces, cuts in self._encode_shard()]
        (raw_data, zip_data), (raw_meta, zip_meta) = pairs[0], pairs[1] if len(pairs) > 1 else (None, None)
        self._infos.append(
            ShardInfo(
                self.schema,
                len(self.new_samples),
                self.compression,
                tuple(self.hashes),
                self.size_limit,
                raw_data,
                zip_data,
                raw_meta,
                zip_meta,
            )
        )
        self._reset()

    def _write_file(
        self, name: str, pieces: list[bytes], cuts: NDArray[np.int64] | None
    ) -> tuple[FileInfo, FileInfo | None]:
        raw = FileInfo(name, sum(map(len, pieces)), hash_all(self.hashes, *pieces))
        if self.compression is None:
            self._store(name, pieces)
            return raw, None
        stored = self._compress(self.compression, b"".join(pieces), cuts)
        name = f"{name}.{extension(self.compression)}"
        self._store(name, [stored])
        return raw, FileInfo(name, len(stored), hash_all(self.hashes, stored))

    def _compress(self, compression: str, data: bytes, cuts: NDArray[np.int64] | None) -> bytes:
        kind, level = split_compression(compression)
        if kind != "zstd" or cuts is None:
            return compress(compression, data)
        return compress_seekable(data, plan_frames(cuts, self._frame), level)

    def _store(self, name: str, pieces: list[bytes]) -> None:
        path = self._folder.write(name, pieces)
        if self._uploader:
            self._uploader.put(name, path, self._uploaded)

    def _uploaded(self, path: Path) -> None:
        if not self.keep_local:
            self._folder.forget(path)

    def _publish(self) -> None:
        if self._uploader:
            self._uploader.finish()
        path = self._folder.write_index(dump_index(self._infos))
        if self._uploader:
            self._uploader.put(path.name, path, self._uploaded)
            self._uploader.finish()


def _limit(size: int | str | None) -> int | None:
    if size is None:
        return None
    if not isinstance(size, str) and size < 0:
        raise ValueError(f"`size_limit` must be greater than zero, instead, found as {size}.")
    limit = parse_size(size)
    if limit > MAX_SHARD_BYTES:
        raise ValueError(
            f"`size_limit` must be less than 2**32, instead, found as {limit}. This is because sample byte offsets are "
            "stored with uint32."
        )
    return limit


def _places(out: Out, remote: str | None) -> tuple[str | None, str | None]:
    """(folder or None for a temporary one, URL or None)."""
    if not isinstance(out, str | os.PathLike):
        # a set of two, which has no order, is none
        parts = [os.fspath(part) for part in out if part is not None] if isinstance(out, Sequence) else []
        if len(parts) != 2 or len(out) != 2 or remote is not None:
            raise ValueError(
                "Invalid `out` argument. It is either a string of local/remote directory or a list of two strings with "
                f"[local, remote]. Got {out!r}"
            )
        return os.path.expanduser(parts[0]), _checked(parts[1])
    place = os.fspath(out)
    if "://" not in place:
        return os.path.expanduser(place), remote and _checked(remote)
    if remote is not None:
        raise ValueError(f"out: expected a folder beside remote={remote!r}, got {place!r}")
    if place.startswith("file://"):
        return place.removeprefix("file://"), None
    return None, _checked(place)


def _checked(remote: str) -> str:
    """Raises before anything is made."""
    scheme = scheme_of(remote)
    if scheme not in ("", "file", "s3"):
        raise UnsupportedSourceError(f"Invalid Cloud provider prefix: {scheme}. For {remote} {instead_of(scheme)}")
    return remote


class MDSWriter(Writer):
    """Writes MDS shards of `columns`, a dictionary of name to encoding."""

    format = "mds"
    extra_bytes_per_sample = 4

    def __init__(self, *, columns: Mapping[str, str], out: Out, **kwargs: Any) -> None:
        schema = schema_of_columns(columns)
        if not schema.column_names:
            raise ValueError("columns: expected at least one, got none: samples without bytes can't be read back")
        self.columns = dict(columns)
        self.column_names = list(schema.column_names)
        self.column_encodings = list(schema.column_encodings)
        self.column_sizes = list(schema.column_sizes or ())
        self._encode = sample_encoder(schema)
        super().__init__(schema, out=out, **kwargs)

    def encode_sample(self, sample: Mapping[str, Any]) -> bytes:
        return self._encode(sample)

    def _shard_overhead(self) -> int:
        return 4 + 4 + len(self._config)

    def _encode_shard(self) -> list[tuple[str, list[bytes], NDArray[np.int64] | None]]:
        pieces, offsets = encode_shard(self.new_samples, self._config)
        return [("", pieces, offsets)]


class _LineWriter(Writer):
    """Writes shards of text lines: a data and a meta file each."""

    def __init__(self, schema: Schema, **kwargs: Any) -> None:
        self.newline = schema.newline
        self._encode = line_encoder(schema)
        self._header = header_line(schema)
        super().__init__(schema, **kwargs)

    def encode_sample(self, sample: Mapping[str, Any]) -> bytes:
        return self._encode(sample)

    def _shard_overhead(self) -> int:
        return 0

    def _encode_shard(self) -> list[tuple[str, list[bytes], NDArray[np.int64] | None]]:
        data, meta, offsets = encode_split_shard(self.new_samples, self._header, self._config)
        return [("", data, offsets), (".meta", meta, None)]


class JSONWriter(_LineWriter):
    """Writes shards of one JSON object a line."""

    format = "json"

    def __init__(self, *, columns: Mapping[str, str], newline: str = "\n", out: Out, **kwargs: Any) -> None:
        self.columns = dict(columns)
        super().__init__(schema_of_lines(self.format, columns, newline), out=out, **kwargs)


class XSVWriter(_LineWriter):
    """Writes shards of lines whose values are parted by any `separator`, after a line of column names."""

    format = "xsv"

    def __init__(
        self, *, columns: Mapping[str, str], separator: str, newline: str = "\n", out: Out, **kwargs: Any
    ) -> None:
        if not separator:
            raise ValueError("separator: expected at least one character, got none")
        schema = schema_of_lines(self.format, columns, newline, separator if self.format == "xsv" else None)
        self.columns = dict(columns)
        self.column_names = list(schema.column_names)
        self.column_encodings = list(schema.column_encodings)
        self.separator = separator
        super().__init__(schema, out=out, **kwargs)


class CSVWriter(XSVWriter):
    """Writes shards of comma-separated values, unquoted."""

    format = "csv"

    def __init__(self, *, columns: Mapping[str, str], newline: str = "\n", out: Out, **kwargs: Any) -> None:
        super().__init__(columns=columns, separator=",", newline=newline, out=out, **kwargs)


class TSVWriter(XSVWriter):
    """Writes shards of tab-separated values, unquoted."""

    format = "tsv"

    def __init__(self, *, columns: Mapping[str, str], newline: str = "\n", out: Out, **kwargs: Any) -> None:
        super().__init__(columns=columns, separator="\t", newline=newline, out=out, **kwargs)
