"""What the store asks of the kernel beyond reading and writing: holes, locks, leases, filesystems, blocks used.

Each function is one question or one act on a descriptor or path; nothing here knows what a cache is.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import struct
from typing import TYPE_CHECKING

from streaming.errors import CacheDirectoryError, CacheFullError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "data_runs",
    "filesystem_type",
    "is_fuse",
    "is_memory",
    "leases_are_honest",
    "lock_exclusively",
    "nobody_else_has_it_open",
    "punch_hole",
    "used_bytes",
    "writing",
]

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01

# statfs.f_type, from linux/magic.h
_FUSE = 0x65735546
_TMPFS = 0x01021994
# These answer F_SETLEASE for their own view of the file only: overlayfs opens the lower or upper inode anew, the
# others do not see the other hosts.
_DISHONEST_LEASES = {
    0x794C7630,  # overlayfs
    0x6969,  # NFS
    0xFF534D42,  # CIFS
    0xFE534D42,  # SMB2
    0x00C36400,  # Ceph
    0x01021997,  # 9p
    0x0BD00BD0,  # Lustre
    _FUSE,
}
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn the OSError of a write into the error of our tree that names what to look at."""
    try:
        yield
    except OSError as error:
        raise write_error(error, path) from error


def write_error(error: OSError, path: str | os.PathLike[str]) -> CacheFullError | CacheDirectoryError:
    """The exception for a failed write at this path."""
    if error.errno in _NO_ROOM:
        return CacheFullError(
            f"the disk under {os.fspath(path)} is full ({error.strerror}): free space there or lower --cache-limit"
        )
    return CacheDirectoryError(f"cannot write {os.fspath(path)}: {error.strerror}")


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Give back the blocks of a range; the size stays, mappings of it read zeros afterwards."""
    if _libc.fallocate(fd, _PUNCH_HOLE_KEEP_SIZE, offset, length):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def data_runs(fd: int, at: int, end: int) -> Iterator[tuple[int, int]]:
    """The parts of a range that are not holes, as (begin, end), at most 1 MiB each."""
    while at < end:
        try:
            begin = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # only a hole is left
                raise
            return
        stop = min(os.lseek(fd, begin, os.SEEK_HOLE), end, begin + (1 << 20))
        if begin >= end:
            return
        yield begin, stop
        at = stop


@contextlib.contextmanager
def lock_exclusively(fd: int) -> Iterator[bool]:
    """Whether nobody has a lock on this file; as long as the block runs, nobody gets one."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
        return
    try:
        yield True
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)


def nobody_else_has_it_open(fd: int) -> bool:
    """Whether this read-write descriptor is the only one on its file, mappings whose descriptor is closed included."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError:  # EAGAIN: open elsewhere; EINVAL, EACCES: this filesystem or user cannot know
        return False
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return True


class _StatFs(ctypes.Structure):
    _fields_ = (("f_type", ctypes.c_long), ("rest", ctypes.c_byte * 512))


def filesystem_type(path: str | os.PathLike[str]) -> int:
    """The magic number of the filesystem at a path."""
    answer = _StatFs()
    if _libc.statfs(os.fsencode(path), ctypes.byref(answer)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fspath(path))
    magic: int = struct.unpack("=Q", struct.pack("=q", answer.f_type))[0] & 0xFFFFFFFF
    return magic


def is_memory(path: str | os.PathLike[str]) -> bool:
    """Whether files at this path are kept in memory, by a filesystem that spends no blocks on remembering them."""
    return filesystem_type(path) == _TMPFS


def is_fuse(path: str | os.PathLike[str]) -> bool:
    """Whether reads and writes at this path go through a user process."""
    return filesystem_type(path) == _FUSE


def leases_are_honest(path: str | os.PathLike[str]) -> bool:
    """Whether `nobody_else_has_it_open` can be believed there."""
    return filesystem_type(path) not in _DISHONEST_LEASES


def used_bytes(folder: str | os.PathLike[str]) -> int:
    """Blocks on disk of everything under a folder, folders included; what vanishes meanwhile counts nothing."""
    total = 0
    with contextlib.suppress(FileNotFoundError):
        total += os.lstat(folder).st_blocks * 512
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    total += used_bytes(entry.path)
                else:
                    with contextlib.suppress(FileNotFoundError):
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
    return total
