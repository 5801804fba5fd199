"""One shard on its way: read and checked, framed anew, put into the destination, read back and checked.

A shard's raw bytes stay what they are, and with them its samples and their order; only how they are stored changes.
Nothing is kept in memory but a few pieces, one frame, and the positions of the samples. What is to be stored gathers in
a file without a name (in TMPDIR), so that nothing is left behind by a process that is killed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from mdsfs.source.stored import Digests, StoredFile, read_head, read_meta
from streaming.errors import StreamingError
from streaming.mds.compression import compress, extension, split_compression
from streaming.mds.seekable import SeekableCompressor, plan_frames
from streaming.mds.shards import FileInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from streaming.mds.shards import ShardInfo
    from streaming.remote import Remote

    from .target import Target

    Pair = tuple[FileInfo, FileInfo | None]

__all__ = ["Rewriter", "Written"]

# For shards without any hash: what was written is compared with what is read back by this one, which is not recorded.
_OWN_HASH = ("sha1",)


@dataclass(frozen=True, slots=True)
class Written:
    """A shard as it now stands in the destination, with the version of each of its files."""

    shard: ShardInfo
    etags: dict[str, str | None]


class Rewriter:
    """Repacks shards of one remote into another; used by many threads at once."""

    def __init__(
        self,
        source: Remote,
        destination: Remote,
        target: Target,
        *,
        check: Callable[[], None],
        progress: Callable[[int], None],
    ) -> None:
        """`check` is called now and then and may raise; `progress` hears of raw bytes that are through."""
        self._source = source
        self._destination = destination
        self._target = target
        self._check = check
        self._progress = progress

    def rewrite(self, shard: ShardInfo) -> Written:
        """The shard in its new form. Raises what keeps it from being read, written, or read back as it was."""
        cuts = None
        meta: Pair | None = None
        etags: dict[str, str | None] = {}
        if shard.raw_meta is not None:
            raw, pieces = self._open(shard, (shard.raw_meta, shard.zip_meta))
            data = b"".join(pieces)
            cuts = read_meta(data, shard)
            stored = compress(self._target.compression, data) if self._target.compression else data
            meta = self._store(shard, shard.raw_meta, raw, [stored], etags)
        file, pieces = self._open(shard, (shard.raw_data, shard.zip_data))
        head: bytes | bytearray = b""
        if cuts is None:
            head, cuts = read_head(pieces, shard)
        data_pair = self._store(shard, shard.raw_data, file, self._framed(itertools.chain([head], pieces), cuts), etags)
        meta_pair = meta or (None, None)
        new = dataclasses.replace(
            shard,
            compression=self._target.compression,
            hashes=self._target.hashes_of(shard),
            raw_data=data_pair[0],
            zip_data=data_pair[1],
            raw_meta=meta_pair[0],
            zip_meta=meta_pair[1],
        )
        return Written(new, etags)

    def _names(self, shard: ShardInfo) -> tuple[str, ...]:
        return self._target.hashes_of(shard) or _OWN_HASH

    def _open(self, shard: ShardInfo, pair: Pair) -> tuple[StoredFile, Iterator[memoryview]]:
        file = StoredFile(self._source, pair, shard.compression, also=self._names(shard), check=self._check)
        return file, file.pieces()

    def _framed(self, pieces: Iterable[bytes | bytearray | memoryview], cuts: NDArray[np.int64]) -> Iterator[bytes]:
        """The stored form of raw pieces."""
        if self._target.compression is None:
            for piece in pieces:
                self._progress(len(piece))
                yield bytes(piece)
            return
        edges = plan_frames(cuts, self._target.frame)
        compressor = SeekableCompressor(edges, split_compression(self._target.compression)[1])
        for piece in pieces:
            self._progress(len(piece))
            yield from compressor.feed(piece)
        yield compressor.finish()

    def _store(
        self,
        shard: ShardInfo,
        info: FileInfo,
        source: StoredFile,
        pieces: Iterable[bytes],
        etags: dict[str, str | None],
    ) -> Pair:
        """One file put into the destination and read back: its entries in the new index."""
        names = self._names(shard)
        compression = self._target.compression
        with _spool() as file:
            digests = Digests(names if compression else ())
            for piece in pieces:
                digests.update(piece)
                _write(file, piece)
            _write(file, None)
            found = source.raw_digests.found()  # of all that was read, and compared: only now
            raw = FileInfo(info.basename, info.bytes, {name: found[name] for name in names})
            stored = None
            if compression is not None:
                stored = FileInfo(f"{info.basename}.{extension(compression)}", digests.size, digests.found())
            key = (stored or raw).basename
            self._destination.put(key, Path(f"/proc/self/fd/{file.fileno()}"))
        self._settle(key)
        back = StoredFile(self._destination, (raw, stored), compression, also=(), check=self._check)
        for _ in back.pieces():
            pass
        etags[key] = back.etag
        kept = self._target.hashes_of(shard)
        return _with_hashes(raw, kept), stored and _with_hashes(stored, kept)

    def _settle(self, key: str) -> None:
        """On a local disk: what a record will say is there survives a power cut as well."""
        path = self._destination.local_path(key)
        for place in (path, path.parent) if path is not None else ():
            fd = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)


def _with_hashes(info: FileInfo, names: tuple[str, ...]) -> FileInfo:
    return info._replace(hashes={name: info.hashes[name] for name in names})


@contextlib.contextmanager
def _spool() -> Iterator[IO[bytes]]:
    try:
        file = tempfile.TemporaryFile(prefix="mdsfs-")  # noqa: SIM115 - the errors of the block are not this one's
    except OSError as error:
        raise _no_spool(error) from error
    with file:
        yield file


def _write(file: IO[bytes], data: bytes | None) -> None:
    """Write, or flush."""
    try:
        if data is None:
            file.flush()
        else:
            file.write(data)
    except OSError as error:
        raise _no_spool(error) from error


def _no_spool(error: OSError) -> StreamingError:
    folder = tempfile.gettempdir()
    return StreamingError(
        f"cannot gather a shard in {folder}: {error.strerror}; name a folder with room for one shard a job in TMPDIR"
    )
