"""Names, inodes and attributes of everything that a mount shows: pure, built once from the datasets' tables, then
only read.

Files are rows of the tables. A directory keeps its files as a slice of one array of row numbers sorted by name, so
that a name is found by binary search and a file costs eight bytes beside its row. Inode numbers are the position in
the tree: fixed for the life of the mount and the same whenever the same index is mounted again. Nothing here ever
changes after `build_tree`: new data under a mounted source is an error of the read that meets it, never another
content behind an inode.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

__all__ = ["CONTROL_DIR", "FIRST_FILE", "ROOT", "STATUS", "Dataset", "Node", "Table", "Tree", "build_tree"]

ROOT = 1
CONTROL = 2
STATUS = 3
FIRST_DIRECTORY = 16
# Directories count up from 16 and files from here: a source would need 2**32 folders before the two could meet.
FIRST_FILE = 1 << 32
CONTROL_DIR = b".mdsfs"
STATUS_NAME = b"status"
INDEX_NAME = b"index.json"
NAME_MAX = 255
# Positions 0–2 are left to `.`, `..` and file servers that give them a meaning of their own.
_FIRST_POSITION = 3


class Table(Protocol):
    """What the tree needs of `streaming.mds.tables.DatasetTables`."""

    @property
    def files(self) -> NDArray[np.void]: ...

    @property
    def blob(self) -> bytes | memoryview | NDArray[np.uint8]: ...


@dataclass(frozen=True, slots=True)
class Dataset:
    """One dataset at its place in the mount; `index_size` is None for plain objects, which have no index."""

    prefix: str
    tables: Table
    index_size: int | None
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Node:
    """What an inode is. `kind`: `dir`, `file` (a row of a table), `index` (a dataset's index.json) or `status`."""

    inode: int
    kind: str
    size: int
    mtime_ns: int
    links: int = 1
    dataset: int = -1
    row: int = -1


@dataclass(slots=True)
class _Directory:
    inode: int
    parent: int
    path: bytes
    mtime_ns: int = 0
    dataset: int = -1
    """The MDS dataset whose index.json stands here, or -1."""
    inner: dict[bytes, int] = field(default_factory=dict)
    """Sub-directories and made-up files by name, sorted once the tree is complete."""
    names: list[bytes] = field(default_factory=list)
    start: int = 0
    stop: int = 0
    folders: int = 0


class Tree:
    """The finished tree. Every method is a lookup without I/O; unknown inodes raise KeyError."""

    def __init__(self, datasets: Sequence[Dataset], directories: dict[int, _Directory], hidden: Sequence[str]) -> None:
        self.datasets = tuple(datasets)
        self.hidden = tuple(hidden)
        """What of the source can't be shown, one line each with its reason."""
        self._directories = directories
        self._order: NDArray[np.int64] = np.empty(0, np.int64)
        counts = [len(dataset.tables.files) for dataset in datasets]
        self._starts = [sum(counts[:number]) for number in range(len(counts) + 1)]
        self._index_inodes: dict[int, int] = {}

    def __repr__(self) -> str:
        return f"Tree({len(self._directories)} directories, {len(self._order)} files, {len(self.hidden)} hidden)"

    @property
    def file_count(self) -> int:
        return len(self._order) + len(self._index_inodes) + 1

    @property
    def shown_bytes(self) -> int:
        """The sizes of all files of all datasets together, as `df` shows them."""
        return sum(int(dataset.tables.files["size"].sum()) + (dataset.index_size or 0) for dataset in self.datasets)

    def node(self, inode: int) -> Node:
        """The node behind an inode."""
        if inode >= FIRST_FILE:
            return self._file_node(inode - FIRST_FILE)
        if inode == STATUS:
            return Node(STATUS, "status", 0, self._directories[ROOT].mtime_ns)
        if (number := self._index_inodes.get(inode)) is not None:
            dataset = self.datasets[number]
            return Node(inode, "index", dataset.index_size or 0, dataset.mtime_ns, dataset=number)
        directory = self._directories[inode]
        return Node(inode, "dir", 0, directory.mtime_ns, links=2 + directory.folders, dataset=directory.dataset)

    def lookup(self, parent: int, name: bytes) -> int | None:
        """The inode of a name in a directory, None where there is none."""
        directory = self._directories[parent]
        if name == b".":
            return parent
        if name == b"..":
            return directory.parent
        if (inode := directory.inner.get(name)) is not None:
            return inode
        found = bisect.bisect_left(range(directory.start, directory.stop), name, key=self._name_at) + directory.start
        if found < directory.stop and self._name_at(found) == name:
            return FIRST_FILE + int(self._order[found])
        return None

    def entries(self, inode: int, after: int) -> Iterator[tuple[bytes, int, int]]:
        """Name, inode and position of each entry behind position `after` (0: from the start)."""
        directory = self._directories[inode]
        first = max(0, after - _FIRST_POSITION + 1) if after else 0
        fixed = [(b".", inode), (b"..", directory.parent), *((name, directory.inner[name]) for name in directory.names)]
        for place in range(first, len(fixed)):
            yield *fixed[place], place + _FIRST_POSITION
        for place in range(max(first, len(fixed)), len(fixed) + directory.stop - directory.start):
            slot = directory.start + place - len(fixed)
            yield self._name_at(slot), FIRST_FILE + int(self._order[slot]), place + _FIRST_POSITION

    def path(self, node: Node) -> str:
        """Where a node stands below the mountpoint, for messages."""
        if node.kind == "file":
            table = self.datasets[node.dataset].tables
            prefix = self.datasets[node.dataset].prefix.strip("/")
            name = bytes(_row_name(table, node.row)).decode(errors="replace")
            return f"{prefix}/{name}" if prefix else name
        if node.kind == "status":
            return ".mdsfs/status"
        if node.kind == "index":
            return "/".join(part for part in (self.datasets[node.dataset].prefix.strip("/"), "index.json") if part)
        return self._directories[node.inode].path.decode(errors="replace") or "/"

    def _file_node(self, number: int) -> Node:
        if number >= self._starts[-1]:
            raise KeyError(number + FIRST_FILE)
        which = bisect.bisect_right(self._starts, number) - 1
        row = number - self._starts[which]
        record = self.datasets[which].tables.files[row]
        mtime = int(record["mtime"]) or self.datasets[which].mtime_ns
        return Node(FIRST_FILE + number, "file", int(record["size"]), mtime, dataset=which, row=row)

    def _name_at(self, slot: int) -> bytes:
        number = int(self._order[slot])
        which = bisect.bisect_right(self._starts, number) - 1
        name = _row_name(self.datasets[which].tables, number - self._starts[which])
        return name[name.rfind(b"/") + 1 :]


def _row_name(table: Table, row: int) -> bytes:
    record = table.files[row]
    start = int(record["name_at"])
    return bytes(table.blob[start : start + int(record["name_len"])])


def _names(table: Table) -> Iterator[bytes]:
    blob = bytes(table.blob)
    starts = table.files["name_at"].tolist()
    lengths = table.files["name_len"].tolist()
    for start, length in zip(starts, lengths, strict=True):
        yield blob[start : start + length]


def _why_hidden(path: bytes) -> str | None:
    """Why a path can't be shown as a file name, None if it can."""
    for part in path.split(b"/"):
        if part in (b"", b".", b".."):
            return "it has an empty, `.` or `..` component"
        if len(part) > NAME_MAX:
            return "a component is longer than 255 bytes"
    if b"\0" in path:
        return "it contains a NUL byte"
    if path == CONTROL_DIR or path.startswith(CONTROL_DIR + b"/"):
        return "the mount uses that name itself"
    return None


class _Builder:
    """Collects directories and, per directory, its files; each name once, the first comer keeps it."""

    def __init__(self, datasets: Sequence[Dataset]) -> None:
        self.datasets = datasets
        self.hidden: list[str] = []
        newest = max((dataset.mtime_ns for dataset in datasets), default=0)
        self.by_path: dict[bytes, _Directory] = {b"": _Directory(ROOT, ROOT, b"", newest)}
        self.by_path[CONTROL_DIR] = _Directory(CONTROL, ROOT, CONTROL_DIR, newest, inner={STATUS_NAME: STATUS})
        self.by_path[b""].inner[CONTROL_DIR] = CONTROL
        self.by_path[b""].folders = 1
        self.files: dict[bytes, list[tuple[bytes, int]]] = {}
        self.next_inode = FIRST_DIRECTORY
        self.index_inodes: dict[int, int] = {}

    def hide(self, path: bytes, reason: str) -> None:
        self.hidden.append(f"{path.decode(errors='replace')}: {reason}")

    def new_inode(self) -> int:
        self.next_inode += 1
        return self.next_inode - 1

    def directory(self, path: bytes, mtime_ns: int) -> _Directory:
        """The directory of a path, made with its parents where missing."""
        found = self.by_path.get(path)
        if found is None:
            parent_path, _, name = path.rpartition(b"/")
            parent = self.directory(parent_path, mtime_ns)
            found = _Directory(self.new_inode(), parent.inode, path, mtime_ns)
            parent.inner[name] = found.inode
            parent.folders += 1
            self.by_path[path] = found
        return found

    def add_index(self, number: int, dataset: Dataset) -> None:
        """The directory of an MDS dataset and its index.json."""
        path = dataset.prefix.strip("/").encode()
        if path and (reason := _why_hidden(path)):
            self.hide(path, reason)
            return
        directory = self.directory(path, dataset.mtime_ns)
        directory.dataset = number
        directory.mtime_ns = dataset.mtime_ns
        inode = self.new_inode()
        directory.inner[INDEX_NAME] = inode
        self.index_inodes[inode] = number

    def add_files(self, first: int, dataset: Dataset) -> None:
        """Every row of a dataset's table, each under its directory."""
        prefix = dataset.prefix.strip("/").encode()
        prefix = prefix + b"/" if prefix else b""
        for row, name in enumerate(_names(dataset.tables)):
            path = prefix + name
            if path.endswith(b"/") and not _why_hidden(path[:-1]):
                self.directory(path[:-1], dataset.mtime_ns)  # an object that stores use as a mark for a folder
                continue
            if reason := _why_hidden(path):
                self.hide(path, reason)
                continue
            parent, _, base = path.rpartition(b"/")
            if parent not in self.by_path:
                self.directory(parent, dataset.mtime_ns)
            self.files.setdefault(parent, []).append((base, first + row))

    def finish(self) -> Tree:
        """Sort each directory's files into one array and drop the names that are taken."""
        directories = {directory.inode: directory for directory in self.by_path.values()}
        order: list[int] = []
        for path, directory in self.by_path.items():
            directory.names = sorted(directory.inner)
            directory.start = len(order)
            order.extend(self._visible(path, directory))
            directory.stop = len(order)
        tree = Tree(self.datasets, directories, self.hidden)
        tree._order = np.array(order, np.int64)
        tree._index_inodes = self.index_inodes
        return tree

    def _visible(self, path: bytes, directory: _Directory) -> Iterator[int]:
        last = None
        for name, number in sorted(self.files.get(path, ())):
            if name == last:
                self.hide(path + b"/" + name, "another file has that name")
            elif name in directory.inner:
                self.hide(path + b"/" + name, "a folder or an index has that name")
            else:
                yield number
            last = name


def build_tree(datasets: Sequence[Dataset]) -> Tree:
    """The tree of several datasets at their prefixes. Where two want a name, the earlier dataset has it."""
    builder = _Builder(datasets)
    for number, dataset in enumerate(datasets):
        if dataset.index_size is not None:
            builder.add_index(number, dataset)
    first = 0
    for dataset in datasets:
        builder.add_files(first, dataset)
        first += len(dataset.tables.files)
    return builder.finish()
