"""Copying single files from and to a remote, as mosaicml-streaming's downloaders and uploaders do.

Every scheme goes through `streaming.remote`; the classes by scheme exist for the programs that name them.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from tempfile import NamedTemporaryFile, mkdtemp
from typing import TYPE_CHECKING, Any

from streaming.compatibility.constants import DEFAULT_TIMEOUT
from streaming.locations import is_url, split_location

if TYPE_CHECKING:
    from streaming.remote import RangeReader, Remote

__all__ = [
    "CloudDownloader",
    "CloudUploader",
    "LocalDownloader",
    "LocalUploader",
    "S3Downloader",
    "S3Uploader",
    "download_file",
]

_PIECE = 1 << 20


def download_file(remote: str | None, local: str, timeout: float = DEFAULT_TIMEOUT) -> None:
    """Copies one file to the path `local`, which appears when it is whole; nothing happens where it is there already.

    Raises ValueError without a remote or for a scheme that is not read, ObjectMissingError (a FileNotFoundError), and
    ReadTimeoutError (a TimeoutError) after `timeout` seconds in all.
    """
    if os.path.exists(local):
        return
    if not remote:
        raise ValueError("In the absence of local dataset, path to remote dataset must be provided")
    deadline = time.monotonic() + timeout
    folder, name = split_location(remote)
    path = Path(local)
    with _open(folder, timeout).open_range(name, deadline=deadline) as reader:
        _save(reader, path)


def _save(reader: RangeReader, path: Path) -> None:
    buffer = memoryview(bytearray(_PIECE))
    count = reader.readinto(buffer)  # what is not there leaves no folder behind
    path.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            while count:
                file.write(buffer[:count])
                count = reader.readinto(buffer)
            file.flush()
            Path(file.name).chmod(0o644)
            Path(file.name).rename(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def _open(place: str, timeout: float | None = None, attempts: int | None = None) -> Remote:
    from streaming.remote import RemoteOptions, open_remote  # brings an SDK: only who transfers needs it

    return open_remote(place, RemoteOptions.from_environment(total_timeout=timeout, attempts=attempts))


class CloudDownloader:
    """Copies files from a remote."""

    @classmethod
    def get(cls, remote_dir: str | None = None) -> CloudDownloader:
        """The downloader for a path or URL. Raises UnsupportedSourceError (a ValueError)."""
        if remote_dir is None or not is_url(remote_dir):
            return LocalDownloader()
        _open(remote_dir)
        return S3Downloader()

    @classmethod
    def direct_download(cls, remote: str | None, local: str, timeout: float = DEFAULT_TIMEOUT) -> None:
        """As `download_file`."""
        download_file(remote, local, timeout)

    def download(self, remote: str | None, local: str, timeout: float = DEFAULT_TIMEOUT) -> None:
        """As `download_file`."""
        download_file(remote, local, timeout)

    def clean_up(self) -> None:
        """Nothing to clean up: connections are closed by themselves."""


class LocalDownloader(CloudDownloader):
    """Copies files from a folder."""


class S3Downloader(CloudDownloader):
    """Copies files from an S3 bucket."""


class CloudUploader:
    """Copies files from a folder to a remote; `get` makes one.

    `out` is a folder, a URL (with a temporary folder) or (folder, URL). `retry` is the number of attempts.
    """

    def __init__(
        self,
        out: Any,
        keep_local: bool = False,
        progress_bar: bool = False,
        retry: int = 2,
        exist_ok: bool = False,
    ) -> None:
        self.keep_local = keep_local
        self.progress_bar = progress_bar
        self.retry = retry
        local, self.remote = _places(out)
        self.local = mkdtemp() if local is None else local
        self._remote = None if self.remote is None else _open(self.remote, attempts=max(1, retry))
        if not exist_ok and os.path.exists(self.local) and os.listdir(self.local):
            raise FileExistsError(f"Directory is not empty: {self.local}")
        os.makedirs(self.local, exist_ok=True)

    @classmethod
    def get(
        cls,
        out: str | os.PathLike[str] | tuple[str, str],
        keep_local: bool = False,
        progress_bar: bool = False,
        retry: int = 2,
        exist_ok: bool = False,
    ) -> CloudUploader:
        """The uploader for `out`. Raises ValueError for what is no place, FileExistsError for a folder in use."""
        _, remote = _places(out)
        kind = S3Uploader if remote is not None and is_url(remote) else LocalUploader
        return kind(out, keep_local, progress_bar, retry, exist_ok)

    def upload_file(self, filename: str) -> None:
        """Copies the folder's file of that name to the remote, then removes it here unless `keep_local`."""
        if self._remote is None:
            return
        path = Path(self.local, filename)
        self._remote.put(filename, path)
        self.clear_local(str(path))

    def list_objects(self, prefix: str | None = None) -> list[str]:
        """Files in the folder whose path begins with `prefix`, as paths."""
        start = os.path.join(self.local, prefix or "")
        found = (os.path.join(folder, name) for folder, _, names in os.walk(self.local) for name in names)
        return sorted(path for path in found if path.startswith(start))

    def clear_local(self, local: str) -> None:
        """Removes a file, unless `keep_local`."""
        if not self.keep_local and os.path.isfile(local):
            os.remove(local)


class LocalUploader(CloudUploader):
    """Copies files to a folder."""


class S3Uploader(CloudUploader):
    """Copies files to an S3 bucket."""

    def list_objects(self, prefix: str | None = None) -> list[str]:
        """Keys in the bucket below the remote's own prefix that begin with `prefix`."""
        if self.remote is None or self._remote is None:
            return super().list_objects(prefix)
        own = self.remote.partition("://")[2].partition("/")[2].strip("/")
        return [f"{own}/{info.key}" if own else info.key for info in self._remote.list(prefix or "")]


def _places(out: Any) -> tuple[str | None, str | None]:
    """(folder or None for a temporary one, remote or None)."""
    if not isinstance(out, str | os.PathLike):
        places = tuple(os.fspath(place) for place in out)
        if len(places) != 2:
            raise ValueError(
                "Invalid `out` argument. It is either a string of local/remote directory or a list of two strings "
                "with [local, remote]."
            )
        local, remote = places
    else:
        place = os.fspath(out)
        local, remote = (None, place) if is_url(place) else (place, None)
    scheme = remote.partition("://")[0] if remote is not None and is_url(remote) else ""
    if scheme not in ("", "s3"):
        raise ValueError(f"Invalid Cloud provider prefix: {scheme}.")
    return local, remote
