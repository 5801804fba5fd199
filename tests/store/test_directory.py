"""The cache directory: created, owned, refused, swept."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from mdsfs.engine.store import disk
from mdsfs.engine.store.directory import FORMAT, CacheStore
from streaming.errors import CacheDirectoryError, EngineRefusedError

from .conftest import add_dataset, fill_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def test_a_new_directory_is_private_and_tagged(tmp_path: Path) -> None:
    """Nobody else may look into it, backups skip it, and it says which format it has."""
    with CacheStore.open(tmp_path / "a" / "cache") as store:
        assert store.root.stat().st_mode & 0o777 == 0o700
        assert (store.root / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55\n")
        assert (store.root / "VERSION").read_text().split() == [str(FORMAT), "pid", str(os.getpid())]


def test_one_engine_owns_it(tmp_path: Path) -> None:
    """The second is refused, and told who the first is."""
    with CacheStore.open(tmp_path), pytest.raises(EngineRefusedError, match=f"pid {os.getpid()}"):
        CacheStore.open(tmp_path)
    CacheStore.open(tmp_path).close()


def test_an_owner_that_was_killed_leaves_no_lock(tmp_path: Path) -> None:
    """After kill -9 the directory is free at once."""
    own = f"s = CacheStore.open({str(tmp_path)!r}); print(1, flush=True); input()"
    code = f"from mdsfs.engine.store.directory import *; {own}"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout
        owner.stdout.readline()
        with pytest.raises(EngineRefusedError, match=f"pid {owner.pid}"):
            CacheStore.open(tmp_path)
        owner.kill()
        owner.wait()
        CacheStore.open(tmp_path).close()


@contextmanager
def filesystem(kind: str, place: Path) -> Iterator[Path]:
    """One of its own in memory."""
    place.mkdir()
    done = subprocess.run(["mount", "-t", kind, "-o", "size=8m", kind, str(place)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount a {kind}: {done.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_cache_is_opened_without_writing(tmp_path: Path) -> None:
    """What a trial of the filesystem would take is not there in a cache at its limit, nor on a full disk."""
    with filesystem("tmpfs", tmp_path / "own") as place:
        with CacheStore.open(place / "cache") as store:
            add_dataset(store)
        with open(place / "of-somebody-else", "wb") as file:
            found = os.statvfs(place)
            os.posix_fallocate(file.fileno(), 0, found.f_bfree * found.f_frsize)
        with CacheStore.open(place / "cache") as store:
            assert len(store.dataset_ids()) == 1


def test_a_filesystem_without_holes_is_refused(tmp_path: Path) -> None:
    """A new cache there, and one that was copied to it: they could never evict."""
    with CacheStore.open(tmp_path / "cache") as store:
        add_dataset(store)
    with filesystem("ramfs", tmp_path / "own") as place:
        with pytest.raises(CacheDirectoryError, match="cannot punch holes"):
            CacheStore.open(place / "new")
        shutil.copytree(tmp_path / "cache", place / "cache")
        (place / "cache").chmod(0o700)
        with pytest.raises(CacheDirectoryError, match="cannot punch holes"):
            CacheStore.open(place / "cache")


def test_what_a_killed_trial_left_is_removed(tmp_path: Path) -> None:
    """A file of an engine that ended while it tried the filesystem."""
    with CacheStore.open(tmp_path) as store:
        add_dataset(store)
    (tmp_path / ".staging-probe").write_bytes(b"x")
    CacheStore.open(tmp_path).close()
    assert not (tmp_path / ".staging-probe").exists()


def test_foreign_directories_are_refused(tmp_path: Path) -> None:
    """A folder with somebody's files stays as it is."""
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(CacheDirectoryError, match="not empty and not a cache"):
        CacheStore.open(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["thesis.tex"]


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    """A file at the path is named as what it is."""
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheDirectoryError, match="not a directory"):
        CacheStore.open(tmp_path / "file")


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    """What a newer version wrote is neither read nor overwritten."""
    (tmp_path / "VERSION").write_text("2\npid 1\n")
    with pytest.raises(CacheDirectoryError, match="newer mdsfs"):
        CacheStore.open(tmp_path)
    assert (tmp_path / "VERSION").read_text() == "2\npid 1\n"


def test_a_directory_that_others_may_write_is_refused(tmp_path: Path) -> None:
    """Whoever may write there could plant bytes."""
    tmp_path.chmod(0o777)
    with pytest.raises(CacheDirectoryError, match="others may write"):
        CacheStore.open(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    """The owner is named."""
    os.chown(tmp_path, 12345, 12345)
    with pytest.raises(CacheDirectoryError, match="belongs to uid 12345"):
        CacheStore.open(tmp_path)


def test_a_filesystem_without_room_for_files_is_refused() -> None:
    """Where nothing can be created, the first line says so."""
    with pytest.raises(CacheDirectoryError, match="cannot create the cache directory /proc/nothing"):
        CacheStore.open("/proc/nothing")


def test_what_killed_engines_left_half_made_is_removed(tmp_path: Path) -> None:
    """Staged and half-removed folders do not survive the next start; datasets do."""
    with CacheStore.open(tmp_path) as store:
        name = add_dataset(store)
        left = [store.staging(), tmp_path / ".trash-x"]
        for path in left:
            path.mkdir()
    with CacheStore.open(tmp_path) as store:
        assert not any(path.exists() for path in left)
        assert [each.id for each in store.idle_folders()] == [name]


def test_disk_bytes_are_those_of_du(store: CacheStore) -> None:
    """The figure that status shows is what the tool of the trade measures."""
    fill_file(store.folder(add_dataset(store)), 0)
    measured = subprocess.run(["du", "-s", "-B1", store.root], capture_output=True, check=True, text=True).stdout
    assert store.disk_bytes() == int(measured.split()[0])


def test_known_datasets_are_found_by_source(store: CacheStore) -> None:
    """An open of the same URL through the same endpoint finds what an earlier one left; another one does not."""
    name = add_dataset(store)
    assert list(store.known("s3://b/d", {"endpoint": None})) == [name]
    assert not store.known("s3://b/d", {"endpoint": "http://other"})
    assert not store.known("s3://b/e", {})


def test_the_same_content_is_adopted_once(store: CacheStore) -> None:
    """A second folder of the same id gives way to the first, with what it holds."""
    folder = store.folder(add_dataset(store))
    fill_file(folder, 0)
    assert add_dataset(store) == folder.id
    assert folder.check_file(0) == "ok"
    assert [path.name for path in store.root.iterdir() if path.name.startswith(".")] == []


def test_deleting_an_unused_folder_frees_its_blocks(store: CacheStore) -> None:
    """An open folder is not deleted; a closed one is, with everything in it."""
    name = add_dataset(store)
    fill_file(store.folder(name), 0)
    assert not store.delete(name)
    store.release(name)
    assert store.idle_folders()[0].disk_bytes >= 40_000
    assert store.delete(name)
    assert store.idle_folders() == []
    assert sorted(os.listdir(store.root)) == ["CACHEDIR.TAG", "VERSION"]


def test_a_reader_that_still_maps_a_deleted_file_holds_no_room(store: CacheStore) -> None:
    """Data is punched before it is unlinked."""
    name = add_dataset(store)
    folder = store.folder(name)
    fill_file(folder, 0)
    fd = folder.read_fd(0)
    store.release(name)
    assert store.delete(name)
    assert os.fstat(fd).st_blocks == 0
    os.close(fd)


def test_leases_are_believed_only_where_they_are_true(tmp_path: Path) -> None:
    """On this filesystem the kind is known, and a second descriptor is noticed where leases count."""
    path = tmp_path / "file"
    path.write_bytes(b"x")
    fd = os.open(path, os.O_RDWR)
    if disk.leases_are_honest(tmp_path):
        assert disk.nobody_else_has_it_open(fd)
        other = os.open(path, os.O_RDONLY)
        assert not disk.nobody_else_has_it_open(fd)
        os.close(other)
        assert disk.nobody_else_has_it_open(fd)
    os.close(fd)
    assert not disk.is_fuse(tmp_path)
