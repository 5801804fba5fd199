"""Directories as remotes: what plain files can do that objects can't."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from streaming.errors import (
    CredentialsRefusedError,
    ObjectChangedError,
    ObjectMissingError,
    RemoteError,
    SourceMissingError,
)
from streaming.remote import open_remote


def test_version_of_a_file(tmp_path: Path) -> None:
    """A file's version is its time of change and its size, so that a copy that keeps both is the same version."""
    (tmp_path / "x").write_bytes(b"12345")
    os.utime(tmp_path / "x", ns=(0, 0x1234))
    info = open_remote(tmp_path).stat("x")
    assert (info.etag, info.size, info.mtime_ns) == ("1234-5", 5, 0x1234)


def test_rewritten_in_place_while_read(tmp_path: Path) -> None:
    """A file that changes under an open reader ends the read; nothing of the new version is handed out."""
    path = tmp_path / "x"
    path.write_bytes(b"a" * 10_000)
    buffer = memoryview(bytearray(4000))
    with open_remote(tmp_path).open_range("x") as reader:
        assert reader.readinto(buffer) == 4000
        with path.open("r+b") as file:
            file.write(b"b" * 10_000)
        os.utime(path, ns=(1, 1))
        with pytest.raises(ObjectChangedError, match="changed while it was read"):
            reader.readinto(buffer)


def test_replaced_while_read(tmp_path: Path) -> None:
    """A file that is replaced as a whole leaves an open reader with the version that it opened."""
    path = tmp_path / "x"
    path.write_bytes(b"a" * 10_000)
    with open_remote(tmp_path).open_range("x") as reader:
        (tmp_path / "new").write_bytes(b"b" * 10_000)
        (tmp_path / "new").rename(path)
        buffer = memoryview(bytearray(10_000))
        assert reader.readinto(buffer) == 10_000
        assert bytes(buffer) == b"a" * 10_000


def test_links(tmp_path: Path) -> None:
    """Links are followed, out of the folder too; one that leads back up does not make a listing endless."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "y").write_bytes(b"there")
    (root / "file").symlink_to(outside / "y")
    (root / "folder").symlink_to(outside)
    (root / "up").symlink_to(root)
    (root / "broken").symlink_to("nowhere")
    remote = open_remote(root)
    assert [found.key for found in remote.list()] == ["file", "folder/y"]
    assert remote.read("folder/y")[0] == b"there"
    with pytest.raises(ObjectMissingError, match="broken"):
        remote.read("broken")


def test_what_is_no_file(tmp_path: Path) -> None:
    """A folder and a pipe are no objects, and asking for them does not hang."""
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    remote = open_remote(tmp_path)
    assert list(remote.list()) == []
    for key in ("folder", "pipe"):
        with pytest.raises(ObjectMissingError, match=key):
            remote.stat(key)
        with pytest.raises(ObjectMissingError, match=key):
            remote.read(key)


def test_missing_folder(tmp_path: Path) -> None:
    """A source that is not there is told apart from an object that is not there."""
    remote = open_remote(tmp_path / "nowhere")
    for ask in (lambda: remote.read("x"), lambda: remote.stat("x"), lambda: list(remote.list())):
        with pytest.raises(SourceMissingError, match=r"nowhere: no such directory; check the path"):
            ask()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_forbidden_file(tmp_path: Path) -> None:
    """A file that we may not read says so."""
    (tmp_path / "x").write_bytes(b"1")
    (tmp_path / "x").chmod(0)
    with pytest.raises(CredentialsRefusedError, match="permission denied"):
        open_remote(tmp_path).read("x")


def test_put_is_whole_or_not_at_all(tmp_path: Path) -> None:
    """A put that fails half-way leaves the old object, and nothing beside it."""
    source, root = tmp_path / "source", tmp_path / "root"
    source.write_bytes(b"n" * (3 << 20))
    remote = open_remote(root)
    remote.put("a/x", b"old")

    def fail(_: int) -> None:
        assert remote.read("a/x")[0] == b"old"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        remote.put("a/x", source, progress=fail)
    assert [path.name for path in (root / "a").iterdir()] == ["x"]
    assert remote.read("a/x")[0] == b"old"


def test_put_honours_the_umask(tmp_path: Path) -> None:
    """What is written is as readable as any new file, not as private as a temporary one."""
    open_remote(tmp_path).put("x", b"1")
    (tmp_path / "y").write_bytes(b"1")
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "y").stat().st_mode


def test_put_into_a_file(tmp_path: Path) -> None:
    """A folder's name that a file has already is an error of ours, with the path."""
    (tmp_path / "x").write_bytes(b"1")
    with pytest.raises(RemoteError, match="x/y"):
        open_remote(tmp_path).put("x/y", b"1")


def test_source_of_a_put_is_missing(tmp_path: Path) -> None:
    """The file to upload is named when it is the one that is missing."""
    with pytest.raises(FileNotFoundError, match="source"):
        open_remote(tmp_path).put("x", Path(tmp_path / "source"))
    assert list(tmp_path.iterdir()) == []
