"""The one tree of exceptions of both packages.

Each class says three things once, so that no layer above has to guess: which errno a filesystem answers with, which
exit code a command ends with, and whether trying again can help. `code` is the name that crosses the engine's socket;
`from_wire` builds the same exception on the other side. Messages are one line, lower-case, without a final stop, and
say what to do.
"""

from __future__ import annotations

import errno as _errno
from typing import Any, ClassVar

__all__ = [
    "BucketMissingError",
    "CacheDirectoryError",
    "CacheFullError",
    "CacheLimitError",
    "CredentialsRefusedError",
    "DatasetError",
    "EndpointUnreachableError",
    "EngineError",
    "EngineRefusedError",
    "EngineUnavailableError",
    "FolderReusedError",
    "IndexFormatError",
    "IndexVersionError",
    "MissingDependencyError",
    "ObjectChangedError",
    "ObjectMissingError",
    "ProtocolError",
    "ReadTimeoutError",
    "RemoteError",
    "ShardCorruptError",
    "ShardFormatError",
    "SourceMissingError",
    "StreamingError",
    "ThrottledError",
    "UnsupportedSourceError",
    "from_wire",
    "to_wire",
]


class StreamingError(Exception):
    """Root of every error that this project raises on purpose."""

    code: ClassVar[str] = "error"
    errno: ClassVar[int] = _errno.EIO
    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False


class MissingDependencyError(StreamingError, ImportError):
    """An optional library is not installed; the message names the extra that brings it."""

    code = "missing-dependency"
    exit_code = 2


# ---- the data --------------------------------------------------------------------------------------------------------


class DatasetError(StreamingError, ValueError):
    """The dataset itself is wrong: trying again gives the same answer."""

    code = "dataset"
    exit_code = 6


class IndexFormatError(DatasetError):
    """index.json breaks its format; the message names the shard, the key and what was expected."""

    code = "index-format"


class IndexVersionError(IndexFormatError):
    """index.json is of another version than 2."""


class ShardFormatError(DatasetError):
    """A shard's bytes break the format (offsets, frames, sizes)."""

    code = "shard-format"


class ShardCorruptError(DatasetError):
    """A shard's size, hash or frame checksum differs from what the index or the frame says."""

    code = "shard-corrupt"


# ---- the store -------------------------------------------------------------------------------------------------------


class RemoteError(StreamingError, OSError):  # type: ignore[misc]  # OSError has an instance attribute errno
    """The object store did not give what was asked for."""

    code = "remote"
    exit_code = 5

    def __str__(self) -> str:  # OSError would print its errno in front
        return str(self.args[0]) if self.args else ""


class UnsupportedSourceError(StreamingError, ValueError):
    """The URL's scheme, or its form, is not one that we read."""

    code = "unsupported-source"
    exit_code = 2


class EndpointUnreachableError(RemoteError):
    """No connection: wrong address, server down, name unknown, TLS refused."""

    code = "endpoint-unreachable"
    retryable = True


class ReadTimeoutError(RemoteError, TimeoutError):  # type: ignore[misc]  # as above
    """The server accepted the request and then was silent, or too slow for the deadline."""

    code = "read-timeout"
    retryable = True


class ThrottledError(RemoteError):
    """5xx, 429 or SlowDown, still after all attempts."""

    code = "throttled"
    retryable = True


class CredentialsRefusedError(RemoteError, PermissionError):
    """The server knows us and says no, or has no way to know us."""

    code = "credentials-refused"
    errno = _errno.EACCES  # type: ignore[misc]
    exit_code = 4


class SourceMissingError(RemoteError, FileNotFoundError):
    """There is nothing under this URL."""

    code = "source-missing"
    errno = _errno.ENOENT  # type: ignore[misc]
    exit_code = 3


class BucketMissingError(SourceMissingError):
    """The bucket does not exist."""

    code = "bucket-missing"


class ObjectMissingError(SourceMissingError):
    """The bucket is there, the object is not."""

    code = "object-missing"


class ObjectChangedError(RemoteError):
    """The object is no longer the version that we pinned: its bytes may not be mixed with what is cached."""

    code = "object-changed"
    errno = _errno.ESTALE  # type: ignore[misc]
    exit_code = 6


# ---- the engine and its cache ----------------------------------------------------------------------------------------


class CacheDirectoryError(StreamingError):
    """The cache directory can't be used: unwritable, foreign, on FUSE, inside its own mountpoint, or gone."""

    code = "cache-directory"
    exit_code = 7


class CacheLimitError(StreamingError, ValueError):
    """The cache limit is smaller than what the dataset needs at least; the message gives the figure."""

    code = "cache-limit"
    errno = _errno.ENOSPC
    exit_code = 7


class CacheFullError(StreamingError):
    """The disk under the cache is full although the limit is not reached."""

    code = "cache-full"
    errno = _errno.ENOSPC
    exit_code = 7


class EngineError(StreamingError):
    """The engine, or the way to it."""

    code = "engine"
    exit_code = 11


class EngineUnavailableError(EngineError, ConnectionError):  # type: ignore[misc]  # as above
    """No engine answers for this cache directory, and none could be started."""

    code = "engine-unavailable"
    retryable = True


class EngineRefusedError(EngineError):
    """An engine runs there with other options or credentials; the message names both."""

    code = "engine-refused"
    exit_code = 7


class FolderReusedError(EngineRefusedError, ValueError):
    """A local folder is the cache of another remote; the message names both."""

    code = "folder-reused"


class ProtocolError(EngineError):
    """The other side speaks another version, or nonsense."""

    code = "protocol"


def _tree(cls: type[StreamingError]) -> dict[str, type[StreamingError]]:
    found = {cls.code: cls}
    for child in cls.__subclasses__():
        found = _tree(child) | found  # a class without a code of its own is no kind that crosses the socket
    return found


def to_wire(error: BaseException) -> dict[str, Any]:
    """The error as it crosses the engine's socket: code, errno and message."""
    if isinstance(error, StreamingError):
        return {"code": error.code, "errno": type(error).errno, "message": str(error)}
    return {"code": StreamingError.code, "errno": _errno.EIO, "message": f"{type(error).__name__}: {error}"}


def from_wire(wire: dict[str, Any]) -> StreamingError:
    """The exception that `to_wire` described; an unknown code becomes a plain StreamingError."""
    cls = _tree(StreamingError).get(str(wire.get("code")), StreamingError)
    return cls(str(wire.get("message", "")))
