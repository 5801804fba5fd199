"""The tree of names, inodes and attributes, without a mount."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdsfs.mount.tree import FIRST_FILE, ROOT, STATUS, Dataset, Tree, build_tree
from streaming.mds.tables import load_tables, objects_tables


def tables_of(names: list[str]):
    """Tables of plain objects whose sizes are their row numbers."""
    rows = [(name, name, number, 1_000 + number, None) for number, name in enumerate(names)]
    return load_tables(b"".join(objects_tables(rows)))


def objects(names: list[str], prefix: str = "") -> Dataset:
    return Dataset(prefix, tables_of(names), None, 7)


def mds(names: list[str], prefix: str = "", index_size: int = 99) -> Dataset:
    return Dataset(prefix, tables_of(names), index_size, 7)


def walk(tree: Tree, inode: int = ROOT, path: str = "") -> dict[str, int]:
    """Path to inode of everything below a directory, by reading directories."""
    found = {}
    for name, child, _ in tree.entries(inode, 0):
        if name in (b".", b".."):
            continue
        here = f"{path}/{name.decode()}"
        found[here] = child
        if tree.node(child).kind == "dir":
            found.update(walk(tree, child, here))
    return found


def test_flat_dataset() -> None:
    """A dataset's index and shards stand in the root beside the control directory."""
    tree = build_tree([mds(["shard.00000.mds", "shard.00001.mds"])])
    assert set(walk(tree)) == {"/.mdsfs", "/.mdsfs/status", "/index.json", "/shard.00000.mds", "/shard.00001.mds"}
    index = tree.node(tree.lookup(ROOT, b"index.json"))
    assert (index.kind, index.size, index.mtime_ns) == ("index", 99, 7)


def test_sub_directories_of_basenames() -> None:
    """A basename with slashes becomes folders."""
    tree = build_tree([mds(["0/shard.00000.mds", "1/deep/shard.00000.mds"])])
    assert {"/0", "/0/shard.00000.mds", "/1", "/1/deep", "/1/deep/shard.00000.mds"} <= set(walk(tree))
    assert tree.node(tree.lookup(ROOT, b"1")).links == 3


def test_several_datasets_at_prefixes() -> None:
    """Splits are folders with an index each, beside plain objects."""
    tree = build_tree([mds(["a"], "train/", 10), mds(["a"], "val", 20), objects(["README.md", "val/extra.bin"])])
    paths = walk(tree)
    assert tree.node(paths["/train/index.json"]).size == 10
    assert tree.node(paths["/val/index.json"]).size == 20
    assert paths["/train/a"] != paths["/val/a"]
    assert {"/README.md", "/val/extra.bin"} <= set(paths)
    assert tree.node(paths["/train"]).dataset == 0
    assert tree.node(paths["/val/extra.bin"]).dataset == 2


def test_file_attributes_come_from_the_table() -> None:
    """Size and time are the row's; a row without a time has the dataset's."""
    rows = [("a", "a", 5, 0, None), ("b", "b", 6, 123, None)]
    tree = build_tree([Dataset("", load_tables(b"".join(objects_tables(rows))), None, 7)])
    a, b = (tree.node(tree.lookup(ROOT, name)) for name in (b"a", b"b"))
    assert (a.size, a.mtime_ns, b.size, b.mtime_ns) == (5, 7, 6, 123)


def test_unknown_names_and_inodes() -> None:
    """An unknown name is None, an unknown inode a KeyError."""
    tree = build_tree([mds(["b"])])
    assert tree.lookup(ROOT, b"a") is None
    assert tree.lookup(ROOT, b"c") is None
    for inode in (4, 9999, FIRST_FILE + 1):
        with pytest.raises(KeyError):
            tree.node(inode)


def test_dot_and_dot_dot() -> None:
    """Every directory knows itself and its parent; the root is its own parent."""
    tree = build_tree([mds(["x/y"])])
    inner = tree.lookup(ROOT, b"x")
    assert tree.lookup(inner, b".") == inner
    assert tree.lookup(inner, b"..") == ROOT
    assert tree.lookup(ROOT, b"..") == ROOT


@pytest.mark.parametrize(
    "name", ["../evil", "a//b", "/abs", "a/../b", "./a", "x" * 256, ".mdsfs/status", ".mdsfs", "a\0b"]
)
def test_names_that_cannot_be_shown(name: str) -> None:
    """A name that is no path, or is ours, is left out with its reason and costs the others nothing."""
    tree = build_tree([objects([name, "good"])])
    assert set(walk(tree)) == {"/.mdsfs", "/.mdsfs/status", "/good"}
    assert len(tree.hidden) == 1


def test_a_name_wanted_twice() -> None:
    """A folder wins over a file of its name, and the earlier dataset over the later."""
    tree = build_tree([mds(["a", "b/c"]), objects(["a", "b", "index.json"])])
    paths = walk(tree)
    assert tree.node(paths["/a"]).dataset == 0
    assert tree.node(paths["/b"]).kind == "dir"
    assert tree.node(paths["/index.json"]).kind == "index"
    assert len(tree.hidden) == 3


def test_folder_marks_become_folders() -> None:
    """An object whose key ends in a slash is a folder, not a file."""
    tree = build_tree([objects(["empty/", "full/", "full/x"])])
    assert set(walk(tree)) == {"/.mdsfs", "/.mdsfs/status", "/empty", "/full", "/full/x"}


def test_paths_for_messages() -> None:
    """Each node can say where it stands."""
    tree = build_tree([mds(["0/a"], "train")])
    for path, inode in walk(tree).items():
        assert "/" + tree.path(tree.node(inode)) == path
    assert tree.path(tree.node(STATUS)) == ".mdsfs/status"


@given(st.sets(st.text("abc/.", min_size=1, max_size=6), max_size=30), st.integers(1, 5))
def test_listing_can_be_resumed_anywhere(names: set[str], page: int) -> None:
    """Reading a directory page by page gives what reading it at once gives, and each entry can be looked up."""
    tree = build_tree([objects(sorted(names, reverse=True))])
    for inode in [ROOT, *(each for each in walk(tree).values() if tree.node(each).kind == "dir")]:
        whole = list(tree.entries(inode, 0))
        paged, after = [], 0
        while batch := list(tree.entries(inode, after))[:page]:
            paged.extend(batch)
            after = batch[-1][2]
        assert paged == whole
        assert all(tree.lookup(inode, name) == child for name, child, _ in whole)
        assert len({name for name, _, _ in whole}) == len(whole)


@given(st.sets(st.text("ab/", min_size=1, max_size=5), max_size=20))
def test_inodes_do_not_depend_on_the_run(names: set[str]) -> None:
    """The same names give the same inodes, so that a second mount of an index looks the same."""
    first, second = (walk(build_tree([mds(sorted(names))])) for _ in range(2))
    assert first == second
    assert len(set(first.values())) == len(first)
