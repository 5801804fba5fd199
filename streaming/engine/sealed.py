"""Sealed memory files: bytes that whoever gets the descriptor can map without fear that they change or shrink."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from typing import TYPE_CHECKING

from streaming.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["map_sealed", "new_memory", "seal", "sealed_memory", "write_all"]

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
# Without these what was checked could be other bytes, or no bytes, when it is used.
_NEEDED = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK


def new_memory(name: str) -> int:
    """A memfd that can be sealed."""
    return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def write_all(fd: int, pieces: Iterable[bytes | memoryview]) -> None:
    """Append every piece."""
    for piece in pieces:
        left = memoryview(piece)
        while left:
            left = left[os.write(fd, left) :]


def seal(fd: int) -> None:
    """From here on the content stays as it is, for everybody and for ever."""
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)


def sealed_memory(name: str, pieces: Iterable[bytes | memoryview]) -> int:
    """A sealed memfd of these bytes; the caller closes it."""
    fd = new_memory(name)
    try:
        write_all(fd, pieces)
        seal(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def map_sealed(fd: int, most: int) -> memoryview:
    """All of a sealed memfd, mapped read-only; the descriptor may be closed.

    Raises ProtocolError where it is not sealed, is empty, or has more than `most` bytes.
    """
    seals = 0
    with contextlib.suppress(OSError):  # not a memfd
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    if seals & _NEEDED != _NEEDED:
        raise ProtocolError("a descriptor is not a sealed memfd")
    size = os.fstat(fd).st_size
    if not 0 < size <= most:
        raise ProtocolError(f"a memfd of {size} bytes: expected 1 to {most}")
    try:
        return memoryview(mmap.mmap(fd, size, prot=mmap.PROT_READ))
    except OSError as error:
        raise ProtocolError(f"a memfd cannot be mapped: {error.strerror}") from error
