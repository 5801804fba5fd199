"""What the kernel asks and what it is told: the only place, beside the one that mounts, that knows pyfuse3.

Handlers translate between inodes and the tree, and between our errors and errnos; they decide nothing. Only FUSEError
may leave one: anything else would end the whole mount. Handlers run in one thread, so whatever happens between two
awaits is atomic: the buffer that all inline reads share is safe because pyfuse3 has sent it before anything else can
run.
"""

from __future__ import annotations

import errno
import functools
import json
import logging
import os
import stat
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

import cachetools
import pyfuse3
import trio

from mdsfs.metrics.timings import Timings
from streaming.errors import StreamingError

from .link import Link, Place
from .tree import ROOT, Node, Tree

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from .hinting import MountHint
    from .status import StatusDocument

__all__ = ["Handlers", "Ownership"]

log = logging.getLogger(__name__)

# The tree never changes, so the kernel may believe it for as long as the mount lives.
FOREVER = 7 * 24 * 3600.0
MAX_READ = 1 << 20
SAMPLE_JUMPS = 2
STATE_PATIENCE = 10.0
# When a read-ahead fails, the kernel asks for its first page once more before the program hears of it. That second
# question gets the same answer at once, or every program would wait for two read timeouts.
REPEAT_SECONDS = 0.25
# How many files may have an error that was logged already; the next ones are logged again.
REMEMBERED_ERRORS = 1024

P = ParamSpec("P")
R = TypeVar("R")

_FILE_ATTRIBUTES = (b"user.mdsfs.state", b"user.mdsfs.source", b"user.mdsfs.hash", b"user.mdsfs.verified")
_ENGINE_ATTRIBUTE = b"user.mdsfs.engine"
_STATE_KEYS = dict(zip(_FILE_ATTRIBUTES, ("state", "source", "hash", "level"), strict=True))


@dataclass(frozen=True, slots=True)
class Ownership:
    """Who owns what is shown, and its permission bits."""

    uid: int
    gid: int
    file_mode: int = 0o444
    dir_mode: int = 0o555


@dataclass(slots=True)
class _Handle:
    node: Node
    thread: int = 0
    """Who opened it."""
    after: int = -1
    """Where the last read ended."""
    jumps: int = 0
    """Reads that did not go on where the last one ended."""
    content: bytes | None = None
    errno: int = 0
    errno_until: float = 0.0


def guarded(handler: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Coroutine[Any, Any, R]]:
    """Let nothing but FUSEError out of a handler."""

    @functools.wraps(handler)
    async def guard(*args: P.args, **kwargs: P.kwargs) -> R:
        begun = time.perf_counter()
        try:
            return await handler(*args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except StreamingError as error:
            raise pyfuse3.FUSEError(type(error).errno) from error
        except KeyError:
            raise pyfuse3.FUSEError(errno.ENOENT) from None
        except OSError as error:
            log.error("%s: %s", handler.__name__, error)
            raise pyfuse3.FUSEError(errno.EIO) from error
        except Exception as error:  # a fault of ours must cost one call, not the mount
            log.exception("%s failed", handler.__name__)
            raise pyfuse3.FUSEError(errno.EIO) from error
        finally:
            timings: Timings = args[0].timings  # type: ignore[attr-defined]  # the handlers themselves
            timings.of("fuse_seconds", "operation", handler.__name__).observe(time.perf_counter() - begun)

    return guard


class Handlers(pyfuse3.Operations):
    """The read-only filesystem of a finished tree."""

    def __init__(
        self, tree: Tree, link: Link, ownership: Ownership, status: StatusDocument, engine: dict[str, Any]
    ) -> None:
        super().__init__()
        self.timings = Timings()
        self.bytes_read = 0
        self.reads_failed = 0
        self._tree = tree
        self._link = link
        self._owner = ownership
        self._status = status
        self._engine = engine
        self._handles: dict[int, _Handle] = {}
        self._last_handle = 0
        self._buffer = memoryview(bytearray(MAX_READ))
        self.watch: MountHint | None = None
        """Who wants to know what is opened."""
        self._logged: cachetools.LRUCache[int, str] = cachetools.LRUCache(REMEMBERED_ERRORS)

    # ---- names and attributes ----------------------------------------------------------------------------------------

    @guarded
    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """A name in a directory; an unknown one is answered with inode 0, which the kernel remembers as absent."""
        inode = self._tree.lookup(parent_inode, name)
        if inode is None:
            absent = pyfuse3.EntryAttributes()
            absent.st_ino = 0
            absent.entry_timeout = FOREVER
            return absent
        return self._attributes(self._tree.node(inode))

    @guarded
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """Attributes from the index or the listing; never a request to anybody."""
        return self._attributes(self._tree.node(inode))

    @guarded
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        """The inode is the handle: a directory has no state."""
        self._tree.entries(inode, 0)
        return inode

    @guarded
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """Entries from a position that stays valid for ever."""
        for name, inode, position in self._tree.entries(fh, start_id):
            if not pyfuse3.readdir_reply(token, name, self._attributes(self._tree.node(inode)), position):
                return

    async def releasedir(self, fh: int) -> None:
        """Nothing was kept."""

    @guarded
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """A full, read-only filesystem of the size of the data."""
        answer = pyfuse3.StatvfsData()
        answer.f_bsize = answer.f_frsize = 4096
        answer.f_blocks = -(-self._tree.shown_bytes // 4096)
        answer.f_files = self._tree.file_count
        answer.f_bfree = answer.f_bavail = answer.f_ffree = answer.f_favail = 0
        answer.f_namemax = 255
        return answer

    # ---- files -------------------------------------------------------------------------------------------------------

    @guarded
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """Open for reading; pages outlive the open file, since the content of an inode never changes."""
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC):
            raise pyfuse3.FUSEError(errno.EROFS)
        handle = _Handle(self._tree.node(inode), ctx.pid)
        self._watch_open(handle.node, ctx.pid)
        if handle.node.kind == "status":
            handle.content = await self._status.render()
        self._last_handle += 1
        self._handles[self._last_handle] = handle
        live = handle.content is not None
        return pyfuse3.FileInfo(fh=self._last_handle, direct_io=live, keep_cache=not live)

    @guarded
    async def read(self, fh: int, off: int, size: int) -> bytes | memoryview:  # type: ignore[override]
        """Exactly what was asked for, fewer bytes only at the end of the file."""
        handle = self._handles[fh]
        node = handle.node
        if handle.content is not None:
            return handle.content[off : off + size]
        size = min(size, node.size - off)
        if size <= 0:
            return b""
        if self.watch is not None:
            self._watch_read(handle, off, size)
        if node.kind == "index":
            return await self._link.read_index(node.dataset, off, size)
        if handle.errno and trio.current_time() < handle.errno_until:
            raise pyfuse3.FUSEError(handle.errno)
        place = Place(node.dataset, node.row, off, size, fh)
        try:
            if size <= MAX_READ and self._link.read_nowait(place, self._buffer[:size]):
                self.bytes_read += size
                return self._buffer[:size]
            data = await self._link.read(place)
        except (StreamingError, OSError) as error:
            failure = self._failed(node, error)
            handle.errno, handle.errno_until = failure.errno, trio.current_time() + REPEAT_SECONDS
            raise failure from error
        handle.errno = 0
        self.bytes_read += size
        self._logged.pop(node.inode, None)
        return data

    async def release(self, fh: int) -> None:
        """Forget the handle."""
        self._handles.pop(fh, None)

    # ---- extended attributes -----------------------------------------------------------------------------------------

    @guarded
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        """State, source, hash and verification of a file; the engine of a dataset's folder."""
        node = self._tree.node(inode)
        if node.kind == "dir" and name == _ENGINE_ATTRIBUTE and node.dataset >= 0:
            prefix = self._tree.datasets[node.dataset].prefix
            return json.dumps({**self._engine, "dataset_prefix": prefix}).encode()
        if node.kind == "file" and name in _STATE_KEYS:
            state = await self._link.state(node.dataset, node.row, STATE_PATIENCE)
            value = state.get(_STATE_KEYS[name])
            if value is not None:
                return str(value).encode()
        raise pyfuse3.FUSEError(errno.ENODATA)

    @guarded
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        """The names that `getxattr` may answer."""
        node = self._tree.node(inode)
        if node.kind == "file":
            return _FILE_ATTRIBUTES
        return (_ENGINE_ATTRIBUTE,) if node.kind == "dir" and node.dataset >= 0 else ()

    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> NoReturn:
        """There are no symbolic links."""
        raise pyfuse3.FUSEError(errno.EINVAL)

    async def _read_only(self, *args: object, **kwargs: object) -> NoReturn:
        """Whatever would change something. The kernel refuses these itself unless root has remounted read-write."""
        raise pyfuse3.FUSEError(errno.EROFS)

    setattr = mknod = mkdir = unlink = rmdir = symlink = rename = link = _read_only
    create = write = setxattr = removexattr = _read_only

    def report(self) -> dict[str, Any]:
        """What the engine is told about this mount, for status and metrics."""
        return {
            "reads_at_once": self._link.reads_at_once,
            "reads_asked": self._link.reads_asked,
            "reads_waiting": self._link.waiting,
            "reads_failed": self.reads_failed,
            "bytes_read": self.bytes_read,
            "timings": self.timings.snapshot(),
        }

    # ---- readers that say nothing ------------------------------------------------------------------------------------

    def _watch_open(self, node: Node, thread: int) -> None:
        if (watch := self.watch) is not None and node.kind == "file" and node.dataset == watch.which:
            watch.opened(thread, node.row)

    def _watch_read(self, handle: _Handle, offset: int, size: int) -> None:
        """A file that stays open: the first jumps are to the offsets and to a sample, each later one to another."""
        if offset != handle.after:
            handle.jumps += 1
            if handle.jumps > SAMPLE_JUMPS:
                self._watch_open(handle.node, handle.thread)
        handle.after = offset + size

    # ---- helpers -----------------------------------------------------------------------------------------------------

    def _attributes(self, node: Node) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = node.inode
        is_dir = node.kind == "dir"
        entry.st_mode = (stat.S_IFDIR | self._owner.dir_mode) if is_dir else (stat.S_IFREG | self._owner.file_mode)
        entry.st_nlink = node.links
        entry.st_uid, entry.st_gid = self._owner.uid, self._owner.gid
        entry.st_size = node.size
        entry.st_blocks = -(-node.size // 512)
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = node.mtime_ns
        entry.entry_timeout = entry.attr_timeout = FOREVER
        return entry

    def _failed(self, node: Node, error: StreamingError | OSError) -> pyfuse3.FUSEError:
        """The errno of a failed read. Each reason is logged once per file, until that file was read again."""
        self.reads_failed += 1
        reason = str(error)
        if self._logged.get(node.inode) != reason:
            self._logged[node.inode] = reason
            path = self._tree.path(node)
            log.error("%s: %s", path, reason, extra={"event": "read-failed", "subject": path})
            self._status.note_error(path, reason)
        return pyfuse3.FUSEError(type(error).errno if isinstance(error, StreamingError) else errno.EIO)


assert ROOT == pyfuse3.ROOT_INODE
