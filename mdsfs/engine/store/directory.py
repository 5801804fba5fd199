"""The cache directory: who owns it, which datasets it holds, and how it is refused.

`<cache>/` holds `CACHEDIR.TAG`, `VERSION` and a folder per dataset, or in `.published` a link to it where its complete
shards stand at their own names: what lies there counts as well. One engine owns it: it holds a flock on `VERSION` for
life. Does what it is told; what to fetch, keep or drop is decided elsewhere. Calls block on the disk for microseconds;
nothing here knows about clients, the network or an event loop. One dataset's folder is `mdsfs.engine.store.folder`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from streaming.errors import CacheDirectoryError, EngineRefusedError, FolderReusedError, ObjectChangedError

from . import disk
from .folder import TRASH, DatasetFolder, DatasetInfo, read_info
from .layout import InternalLayout, Layout, PublishedLayout

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["FORMAT", "CacheStore", "DatasetFolder", "DatasetInfo", "IdleFolder", "dataset_id"]

# Of the whole directory. Raise it when an older engine would misread what this one writes.
FORMAT = 1
_TAG = "CACHEDIR.TAG"
_VERSION = "VERSION"
_TAG_TEXT = (
    "Signature: 8a477f597d28d172789f06886806bc55\n"
    "# This directory is a cache of mdsfs: https://bford.info/cachedir/ says what that means for backups.\n"
)
_STAGING = ".staging-"
_LINKS = ".published"
_INDEX = ".mdsfs-index-"


@dataclass(frozen=True, slots=True)
class IdleFolder:
    """A dataset folder as seen from outside: what `clean` shows, and what goes first when room is needed."""

    id: str
    info: DatasetInfo
    last_used_ns: int
    disk_bytes: int


class CacheStore:
    """An owned cache directory. `open` is the door."""

    def __init__(self, root: Path, lock: int) -> None:
        self.root = root
        self._lock = lock
        self._open: dict[str, DatasetFolder] = {}

    def __repr__(self) -> str:
        return f"CacheStore({self.root}, open={len(self._open)})"

    @classmethod
    def open(cls, root: str | os.PathLike[str], *, mode: int = 0o700) -> CacheStore:
        """Own this directory, creating it where it is missing.

        Raises CacheDirectoryError where it cannot be a cache (foreign, unwritable, on FUSE, without holes, of a newer
        format), EngineRefusedError where another engine owns it.
        """
        path = Path(root).absolute()
        _make_root(path, mode)
        _check_root(path)
        lock = _own(path)
        try:
            store = cls(path, lock)
            store._sweep()
            _probe_holes(path)
        except BaseException:
            os.close(lock)
            raise
        return store

    def close(self) -> None:
        """Close every folder and let go of the directory."""
        for folder in list(self._open.values()):
            folder.close()
        self._open.clear()
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def disk_bytes(self) -> int:
        """Blocks on disk of all of it, as `du` counts: for status and tests, not for decisions (it walks the files)."""
        layouts = [folder.layout for folder in self._open.values()]
        published = {layout.publish for layout in layouts if isinstance(layout, PublishedLayout)}
        outside = [path for path in published if not path.is_relative_to(self.root)]
        return disk.used_bytes(self.root) + sum(disk.used_bytes(path) for path in outside)

    # ---- datasets ----------------------------------------------------------------------------------------------------

    def staging(self) -> Path:
        """Where a new folder may be made, to be filled and given to `adopt`; the next engine removes forgotten ones."""
        return self.root / f"{_STAGING}{os.getpid()}-{secrets.token_hex(4)}"

    def adopt(self, staged: Path, info: DatasetInfo, *, publish: Path | None = None) -> str:
        """Turn a staged folder (tables, index.json, index.orig) into a dataset's; returns its id.

        A folder of the same dataset that is there already wins, and the staged one is removed. With `publish` there
        may be another one: raises FolderReusedError, or ObjectChangedError for another version of the same.
        """
        name = info.id
        layout = self.layout(name, publish=publish)
        if (there := read_info(layout.folder / "dataset.json")) is not None:
            _check_same(there, info, layout, staged)
            shutil.rmtree(staged)
            if isinstance(layout, PublishedLayout):
                self._link(there.id, layout)
            return there.id
        with disk.writing(self.root):
            _write_durably(staged / "dataset.json", json.dumps(info.to_json(), indent=1).encode() + b"\n")
            (staged / "files").mkdir(mode=0o700, exist_ok=True)
            if isinstance(layout, PublishedLayout):
                self._link(name, layout)  # first: what is not listed would count for nothing
                _publish_index(staged, layout)
            layout.folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.rename(staged, layout.folder)
        return name

    def layout(self, name: str, *, publish: Path | None = None) -> Layout:
        """Where a dataset's files lie: where they are already, else as asked for."""
        if read_info(self._links / name / "dataset.json") is not None:
            return PublishedLayout(Path(os.path.realpath(self._links / name)).parent)
        return PublishedLayout(publish) if publish else InternalLayout(self.root / name)

    @property
    def _links(self) -> Path:
        return self.root / _LINKS

    def _link(self, name: str, layout: PublishedLayout) -> None:
        inside = layout.folder.is_relative_to(self.root)  # then the cache may be moved as a whole
        target = os.path.relpath(layout.folder, self._links) if inside else layout.folder
        self._links.mkdir(mode=0o700, exist_ok=True)
        (self._links / name).unlink(missing_ok=True)
        (self._links / name).symlink_to(target)

    def folder(self, name: str, *, publish: Path | None = None) -> DatasetFolder:
        """The open folder of a dataset; the same object for every call until it is closed by `release`."""
        if name not in self._open:
            self._open[name] = DatasetFolder(self.layout(name, publish=publish))
        return self._open[name]

    def release(self, name: str) -> None:
        """Close a folder that no client uses."""
        self._open.pop(name).close()

    def forget(self, name: str) -> None:
        """A folder was removed through its own `remove`."""
        self._open.pop(name, None)
        (self._links / name).unlink(missing_ok=True)

    def known(self, url: str, identity: Mapping[str, Any]) -> dict[str, DatasetInfo]:
        """What earlier opens of this source left here, by id: their indexes need no second parsing.

        A dataset that was found below another source is the same when it is opened by itself, and the other way round.
        """
        found = {}
        for name, info in self._infos():
            if info.identity.get("endpoint") != identity.get("endpoint"):
                continue
            own = f"{info.url.rstrip('/')}/{info.prefix}".rstrip("/")
            if info.url == url:
                found[name] = info
            elif info.kind == "mds" and f"{own}/".startswith(f"{url}/"):
                found[name] = replace(info, url=url, prefix=own[len(url) + 1 :])
        return found

    def dataset_ids(self) -> list[str]:
        """All dataset folders, longest unused first."""
        return sorted((name for name, _ in self._infos()), key=self._last_used)

    def _last_used(self, name: str) -> int:
        return (self.layout(name).folder / "dataset.json").stat().st_mtime_ns

    def idle_folders(self) -> list[IdleFolder]:
        """Dataset folders that are not open here, longest unused first."""
        found = [
            IdleFolder(name, info, self._last_used(name), disk.used_bytes(self.layout(name).folder))
            for name, info in self._infos()
            if name not in self._open
        ]
        return sorted(found, key=lambda each: each.last_used_ns)

    def delete(self, name: str) -> bool:
        """Remove a dataset folder; False, and nothing done, when it is open here or a reader has a pin in it."""
        if name in self._open:
            return False
        folder = DatasetFolder(self.layout(name))
        gone = folder.remove()
        if gone:
            self.forget(name)
        else:
            folder.close()
        return gone

    def _infos(self) -> list[tuple[str, DatasetInfo]]:
        with os.scandir(self.root) as entries:
            names = {each.name for each in entries if each.is_dir(follow_symlinks=False) and each.name[0] != "."}
        with contextlib.suppress(FileNotFoundError):
            names.update(os.listdir(self._links))
        infos = ((name, read_info(self.layout(name).folder / "dataset.json")) for name in sorted(names))
        return [(name, info) for name, info in infos if info is not None]

    def _sweep(self) -> None:
        # Left by engines that were killed: folders half made, folders half removed. Nobody else works here.
        _remove_all(self.root, (_STAGING, TRASH))
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self._links):
                folder = Path(os.path.realpath(self._links / name))
                _remove_all(folder.parent, (TRASH, _INDEX))
                if read_info(folder / "dataset.json") is None:
                    (self._links / name).unlink()


def _remove_all(folder: Path, prefixes: tuple[str, ...]) -> None:
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(prefixes):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    os.unlink(entry.path)


def _check_same(there: DatasetInfo, info: DatasetInfo, layout: Layout, staged: Path) -> None:
    """Raises unless a folder holds this very dataset: its index may have been stored anew, but not changed."""
    if there.id == info.id:
        return
    old, new = ((each.url, each.prefix, each.identity.get("endpoint")) for each in (there, info))
    if old != new:
        raise FolderReusedError(
            f"Reused local directory: {layout.index.parent} of {there.url} vs {info.url}. Provide a different one."
        )
    if (layout.folder / "index.orig").read_bytes() != (staged / "index.orig").read_bytes():
        raise ObjectChangedError(
            f"{info.url}: the dataset is another one than when {layout.index.parent} was filled from it: remove that "
            "folder, or give another one"
        )


def dataset_id(kind: str, url: str, endpoint: str | None, version: str) -> str:
    """The folder name of one version of a dataset: `version` is its index's ETag or hash, or its listing's digest."""
    text = json.dumps([kind, url, endpoint, version])
    return hashlib.blake2s(text.encode(), digest_size=16).hexdigest()


# ---- creating and refusing -------------------------------------------------------------------------------------------


def _make_root(path: Path, mode: int) -> None:
    try:
        path.mkdir(mode=mode, parents=True)
        path.chmod(mode)
    except FileExistsError:
        if not path.is_dir():
            raise CacheDirectoryError(f"{path} is not a directory: choose another --cache-dir") from None
    except OSError as error:
        raise CacheDirectoryError(f"cannot create the cache directory {path}: {error.strerror}") from error


def _check_root(path: Path) -> None:
    try:
        found, names = path.stat(), set(os.listdir(path))
        fuse = disk.is_fuse(path)
    except OSError as error:
        raise CacheDirectoryError(f"cannot use the cache directory {path}: {error.strerror}") from error
    if fuse:
        raise CacheDirectoryError(f"{path} is on a FUSE filesystem: choose a --cache-dir on a local disk")
    if found.st_uid != os.geteuid():
        raise CacheDirectoryError(f"{path} belongs to uid {found.st_uid}, not to {os.geteuid()}: choose another")
    if found.st_mode & 0o022:
        raise CacheDirectoryError(f"others may write to {path}: chmod go-w it or choose another --cache-dir")
    if names - {"lost+found"} and _VERSION not in names:
        raise CacheDirectoryError(
            f"{path} is not empty and not a cache of mdsfs: choose another --cache-dir, or an empty one"
        )
    if not os.access(path, os.W_OK | os.X_OK):
        raise CacheDirectoryError(f"cannot write to the cache directory {path}: permission denied")


def _own(path: Path) -> int:
    with disk.writing(path):
        fd = os.open(path / _VERSION, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        _lock_version(fd, path)
        _check_format(fd, path)
        with disk.writing(path):
            # In place: the lock is on this inode.
            os.pwrite(fd, f"{FORMAT}\npid {os.getpid()}\n".encode().ljust(24), 0)
            if not (path / _TAG).exists():
                (path / _TAG).write_text(_TAG_TEXT)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _lock_version(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        words = os.pread(fd, 64, 0).split()
        owner = f" (pid {int(words[2])})" if len(words) >= 3 and words[2].isdigit() else ""
        raise EngineRefusedError(
            f"another engine{owner} owns {path}: connect to it, or stop it with mdsfs engine --stop"
        ) from None


def _check_format(fd: int, path: Path) -> None:
    words = os.pread(fd, 64, 0).split()
    if not words:
        return
    if not words[0].isdigit():
        raise CacheDirectoryError(f"{path / _VERSION} is not what mdsfs writes: choose another --cache-dir")
    if int(words[0]) > FORMAT:
        raise CacheDirectoryError(
            f"{path} was written by a newer mdsfs (format {int(words[0])}, this one knows {FORMAT}): "
            "upgrade, or choose another --cache-dir"
        )


def _probe_holes(path: Path) -> None:
    """Without holes nothing could ever be evicted: find out now, not when the cache is full.

    Where data may lie already, a trial of it could cross the limit, or find the disk full: there the kernel is asked
    without writing. Whether punching really frees blocks was seen when the directory was empty.
    """
    is_new = not set(os.listdir(path)) - {_VERSION, _TAG, "lost+found"}
    if not (_punching_frees(path) if is_new else _may_punch(path)):
        raise CacheDirectoryError(
            f"the filesystem of {path} cannot punch holes into files: choose a --cache-dir on ext4, xfs or btrfs"
        )


def _punching_frees(path: Path) -> bool:
    probe = path / f"{_STAGING}probe"
    with disk.writing(path):
        fd = os.open(probe, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(fd, b"\1" * (3 << 20), 0)
            before = os.fstat(fd).st_blocks
            with contextlib.suppress(OSError):
                disk.punch_hole(fd, 1 << 20, 1 << 20)
            return os.fstat(fd).st_blocks < before
        finally:
            os.close(fd)
            os.unlink(probe)


def _may_punch(path: Path) -> bool:
    fd = os.open(path / _TAG, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        disk.punch_hole(fd, 1 << 20, 4096)  # far behind its end: nothing changes
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _publish_index(staged: Path, layout: PublishedLayout) -> None:
    # Only the shown index leaves the folder; a copy of it under its name before the shards is what readers expect.
    layout.publish.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = layout.publish / f"{_INDEX}{secrets.token_hex(4)}"
    shutil.copyfile(staged / "index.json", temporary)
    os.rename(temporary, layout.index)


def _write_durably(path: Path, data: bytes) -> None:
    with open(path, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
