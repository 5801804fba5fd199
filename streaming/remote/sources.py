"""Owns which kind of remote a URL names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from streaming.errors import UnsupportedSourceError
from streaming.locations import instead_of, scheme_of
from streaming.remote.local import LocalRemote
from streaming.remote.options import RemoteOptions

if TYPE_CHECKING:
    from streaming.remote.interface import Remote

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def open_remote(url: str | Path, options: RemoteOptions | None = None) -> Remote:
    """The remote behind a path, a file:// or an s3:// URL; nothing is asked of it yet.

    Without options the environment's are used.
    """
    options = RemoteOptions.from_environment() if options is None else options
    text = str(url)
    scheme = scheme_of(text) if _SCHEME.match(text) else ""
    if scheme == "s3":
        return _open_s3(text, options)
    if scheme == "file":
        return LocalRemote(text, _file_path(text), options)
    if scheme:
        raise UnsupportedSourceError(f"Unsupported remote path: {text}: {instead_of(scheme)}")
    if not text:
        raise UnsupportedSourceError("an empty source; use s3://bucket/prefix, file:///folder or a path")
    return LocalRemote(text, Path(text).expanduser().absolute(), options)


def _open_s3(url: str, options: RemoteOptions) -> Remote:
    from streaming.remote.s3 import S3Remote

    # not urlsplit: '?', '#' and '%' are ordinary characters of a key
    bucket, _, prefix = url.partition("://")[2].partition("/")
    prefix = prefix.strip("/")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:/-]{1,254}", bucket):
        raise UnsupportedSourceError(f"{url}: {bucket!r} is not a bucket's name; use s3://bucket/prefix")
    if any(part in ("", ".", "..") for part in prefix.split("/")) and prefix:
        raise UnsupportedSourceError(f"{url}: the prefix may not hold '.', '..' or an empty name")
    return S3Remote(url, bucket, prefix, options)


def _file_path(url: str) -> Path:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise UnsupportedSourceError(f"{url}: a file URL names no other host; use file:///folder")
    path = Path(unquote(parts.path))
    if not path.is_absolute():
        raise UnsupportedSourceError(f"{url}: not an absolute path; use file:///folder")
    return path
