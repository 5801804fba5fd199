"""Owns remotes that are directories of this host: the same promises as an object store, from plain files."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat as stat_bits
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

from streaming.errors import (
    CredentialsRefusedError,
    ObjectChangedError,
    ObjectMissingError,
    ReadTimeoutError,
    RemoteError,
    SourceMissingError,
)
from streaming.remote.interface import ObjectInfo, RangeReader, Remote, check_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streaming.remote.options import RemoteOptions

_PIECE = 1 << 20


class LocalRemote(Remote):
    """A directory. An object's ETag is made of what changes with its content: its size and the time of its change."""

    def __init__(self, url: str, root: Path, options: RemoteOptions) -> None:
        super().__init__(url, options)
        self.root = root

    def local_path(self, key: str) -> Path:
        """The file itself; it need not exist."""
        return self.root / check_key(key)

    def stat(self, key: str) -> ObjectInfo:
        """From the file's attributes."""
        path = self.local_path(key)
        try:
            found = path.stat()
        except OSError as error:
            raise self._failure(path, error) from error
        if not stat_bits.S_ISREG(found.st_mode):
            raise ObjectMissingError(f"{path}: not a regular file")
        return _info(key, found)

    def open_range(
        self,
        key: str,
        start: int = 0,
        stop: int | None = None,
        *,
        etag: str | None = None,
        size: int | None = None,
        deadline: float | None = None,
    ) -> RangeReader:
        """As in `Remote`; the file is opened at once, since that can't block for long."""
        path = self.local_path(key)
        self.counters.add("requests")
        try:
            file = open(path, "rb", buffering=0, opener=_open_at_once)  # noqa: SIM115  # the reader closes it
        except OSError as error:
            self.counters.add("errors")
            raise self._failure(path, error) from error
        try:
            return _FileRange(self, path, file, (start, stop), expected=(etag, size), deadline=deadline)
        except BaseException:
            file.close()
            raise

    def list(self, prefix: str = "", *, recursive: bool = True) -> Iterator[ObjectInfo]:
        """As in `Remote`; what is neither a file nor a folder is left out."""
        if not self.root.is_dir():
            raise SourceMissingError(f"{self.root}: no such directory; check the path")
        folder = prefix.rpartition("/")[0]
        if folder:
            check_key(folder)
        base = self.root / folder
        if not base.is_dir():
            return
        yield from self._walk(base, f"{folder}/" if folder else "", prefix, recursive, ())

    def _walk(
        self, folder: Path, at: str, prefix: str, recursive: bool, above: tuple[tuple[int, int], ...]
    ) -> Iterator[ObjectInfo]:
        here = folder.stat()
        if (here.st_dev, here.st_ino) in above:
            return  # a link that leads back up would never end
        try:
            with os.scandir(folder) as found:
                # a folder sorts as its keys do: with the '/' that follows its name
                entries = sorted((os.fsencode(e.name) + (b"/" if e.is_dir() else b""), e) for e in found)
        except OSError as error:
            raise self._failure(folder, error) from error
        for name, entry in entries:
            key = at + os.fsdecode(name)
            if key.endswith("/"):
                if not (key.startswith(prefix) or prefix.startswith(key)):
                    continue
                if recursive or len(key) <= len(prefix):
                    inside = (*above, (here.st_dev, here.st_ino))
                    yield from self._walk(folder / entry.name, key, prefix, recursive, inside)
                else:
                    yield ObjectInfo(key, 0, None, 0)
            elif key.startswith(prefix) and entry.is_file():
                yield _info(key, entry.stat())

    def put(self, key: str, data: bytes | Path, *, progress: Callable[[int], None] | None = None) -> None:
        """Written beside its name and renamed, so that nobody sees a part of it."""
        path = self.local_path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
                try:
                    _copy(data, file, progress)
                    file.flush()
                    os.fchmod(file.fileno(), 0o666 & ~_umask())
                    Path(file.name).rename(path)
                except BaseException:
                    Path(file.name).unlink(missing_ok=True)
                    raise
        except OSError as error:
            if isinstance(data, Path) and error.filename == str(data):
                path = data
            raise self._failure(path, error) from error

    def delete(self, key: str) -> None:
        """Folders that are empty afterwards go as well: in an object store there are none."""
        path = self.local_path(key)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise self._failure(path, error) from error
        folder = path.parent
        with contextlib.suppress(OSError):  # not empty, or somebody else's
            while folder != self.root:
                folder.rmdir()
                folder = folder.parent

    def _failure(self, path: Path, error: OSError) -> RemoteError:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            if not self.root.is_dir():
                return SourceMissingError(f"{self.root}: no such directory; check the path")
            return ObjectMissingError(f"{path}: no such file")
        if error.errno in (errno.EACCES, errno.EPERM):
            return CredentialsRefusedError(f"{path}: permission denied; check the file's owner and mode")
        if error.errno == errno.EISDIR:
            return ObjectMissingError(f"{path}: a directory, not a file")
        return RemoteError(f"{path}: {error.strerror or error}")


class _FileRange(RangeReader):
    def __init__(
        self,
        remote: LocalRemote,
        path: Path,
        file: IO[bytes],
        span: tuple[int, int | None],
        *,
        expected: tuple[str | None, int | None],
        deadline: float | None,
    ) -> None:
        self._remote, self._path, self._file, self._deadline = remote, path, file, deadline
        found = os.fstat(file.fileno())
        if not stat_bits.S_ISREG(found.st_mode):
            raise ObjectMissingError(f"{path}: not a regular file")
        self._info = _info("", found)
        etag, size = expected
        if etag not in (None, self._info.etag):
            raise ObjectChangedError(f"{path}: changed since it was first read; mount it again to read the new version")
        if size not in (None, self._info.size):
            raise ObjectChangedError(f"{path}: {self._info.size} bytes, expected {size}")
        start, stop = span
        self._at, self._stop = start, self._info.size if stop is None else stop
        if not 0 <= start <= self._stop <= self._info.size:
            raise ObjectChangedError(f"{path}: {self._info.size} bytes, too short for {start}-{self._stop}")
        self._cancelled = False

    @property
    def etag(self) -> str | None:
        return self._info.etag

    @property
    def size(self) -> int:
        return self._info.size

    @property
    def mtime_ns(self) -> int:
        return self._info.mtime_ns

    def readinto(self, buffer: memoryview) -> int:
        if self._cancelled:
            raise RemoteError(f"{self._path}: reading was cancelled")
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise ReadTimeoutError(f"{self._path}: not read before its deadline")
        wanted = min(len(buffer), self._stop - self._at)
        if wanted == 0:
            return 0
        try:
            count = os.preadv(self._file.fileno(), [buffer[:wanted]], self._at)
            now = _info("", os.fstat(self._file.fileno()))
        except OSError as error:
            raise RemoteError(f"{self._path}: {error.strerror}") from error
        # looked at after copying: a file rewritten in place may not lend bytes of two versions
        if now.etag != self._info.etag or count == 0:
            raise ObjectChangedError(f"{self._path}: changed while it was read")
        self._at += count
        self._remote.counters.add("bytes", count)
        return count

    def cancel(self) -> None:
        self._cancelled = True

    def close(self) -> None:
        self._file.close()


def _info(key: str, found: os.stat_result) -> ObjectInfo:
    etag = f"{found.st_mtime_ns:x}-{found.st_size:x}"
    return ObjectInfo(key, found.st_size, etag, found.st_mtime_ns)


def _open_at_once(name: str, flags: int) -> int:
    # a pipe that nobody writes to would be waited for; regular files don't care
    return os.open(name, flags | os.O_NONBLOCK)


def _copy(data: bytes | Path, file: IO[bytes], progress: Callable[[int], None] | None) -> None:
    if isinstance(data, bytes):
        file.write(data)
        if progress:
            progress(len(data))
        return
    with data.open("rb") as source:
        if progress is None:
            shutil.copyfileobj(source, file, _PIECE)
            return
        while piece := source.read(_PIECE):
            file.write(piece)
            progress(len(piece))


def _umask() -> int:
    # the only way to read it without changing it for other threads
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return 0o022
