"""One dataset's files: sparse, pinned, punched, and trusted after a restart only as far as they may be."""

from __future__ import annotations

import fcntl
import mmap
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from mdsfs.engine.store.directory import CacheStore
from mdsfs.engine.store.state import RECORD
from streaming.engine.residency import ResidencyWriter
from streaming.errors import CacheDirectoryError

from .conftest import SIZES, add_dataset, fill_file, reopened, shard_bytes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mdsfs.engine.store.directory import DatasetFolder


def read(folder: DatasetFolder, n: int) -> bytes:
    return folder.file_path(n).read_bytes()


def test_a_new_file_is_sparse_at_its_full_size(folder: DatasetFolder) -> None:
    """It can be mapped whole, and costs nothing."""
    fd = folder.open_file(0)
    found = os.fstat(fd)
    assert (found.st_size, found.st_blocks, found.st_mode & 0o777) == (SIZES[0], 0, 0o600)
    os.close(fd)


def test_metadata_is_at_least_what_is_on_disk(folder: DatasetFolder) -> None:
    """The fixed charge covers everything but data, also when every record has been written."""
    for n in range(len(SIZES)):
        fill_file(folder, n)
        folder.punch(n, 0, SIZES[n])
    assert folder.disk_bytes() <= folder.metadata_bytes()


# ---- punching and pins -----------------------------------------------------------------------------------------------


def test_punching_frees_blocks_under_a_mapping(folder: DatasetFolder) -> None:
    """The range reads as zeros, the rest stays, the size stays."""
    fill_file(folder, 0)
    fd = folder.read_fd(0)
    with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as mapped:
        before = os.fstat(fd).st_blocks
        assert folder.punch(0, 4096, 8192)
        assert os.fstat(fd).st_blocks == before - 16
        assert mapped[:] == shard_bytes(0)[:4096] + bytes(8192) + shard_bytes(0)[12288:]
    os.close(fd)


def test_the_last_block_goes_with_the_end_of_the_file(folder: DatasetFolder) -> None:
    """A range up to the end of the file frees its last, partial block."""
    fill_file(folder, 2)
    assert folder.punch(2, 0, SIZES[2])
    assert folder.file_path(2).stat().st_blocks == 0


def test_a_pinned_file_is_left_alone(folder: DatasetFolder) -> None:
    """A reader's shared lock keeps every byte and the record; closing its descriptor ends that."""
    fill_file(folder, 0)
    fd = folder.read_fd(0)
    fcntl.flock(fd, fcntl.LOCK_SH)
    assert not folder.punch(0, 0, 4096)
    assert not folder.drop_file(0)
    assert read(folder, 0) == shard_bytes(0)
    assert folder.state.get(0).complete
    os.close(fd)
    assert folder.punch(0, 0, 4096)


def test_pins_of_two_readers_are_independent(folder: DatasetFolder) -> None:
    """Each descriptor handed out has a lock of its own: one reader's unlock is not the other's."""
    fill_file(folder, 0)
    one, two = folder.read_fd(0), folder.read_fd(0)
    fcntl.flock(one, fcntl.LOCK_SH)
    fcntl.flock(two, fcntl.LOCK_SH)
    fcntl.flock(one, fcntl.LOCK_UN)
    assert not folder.punch(0, 0, 4096)
    os.close(one)
    os.close(two)


def test_nobody_gets_a_pin_while_a_file_is_taken_away(folder: DatasetFolder) -> None:
    """The lock is held as long as the block runs."""
    fill_file(folder, 0)
    reader = folder.read_fd(0)
    with folder.unpinned(0) as fd:
        assert fd is not None
        with pytest.raises(BlockingIOError):
            fcntl.flock(reader, fcntl.LOCK_SH | fcntl.LOCK_NB)
    fcntl.flock(reader, fcntl.LOCK_SH | fcntl.LOCK_NB)
    os.close(reader)


def test_two_that_take_away_from_one_file_are_no_pin_for_each_other(folder: DatasetFolder) -> None:
    """Punches of one file that meet take turns, and all of them succeed."""
    fill_file(folder, 0)
    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(lambda block: folder.punch(0, block % 8 * 4096, 4096), range(400)))


# ---- after a restart -------------------------------------------------------------------------------------------------


def kill_here(_: DatasetFolder) -> None:
    """Nothing happens to the file."""


def edit(folder: DatasetFolder) -> None:
    before = folder.file_path(0).stat().st_mtime_ns
    while folder.file_path(0).stat().st_mtime_ns == before:  # most kernels' clock for files ticks a few times in 10 ms
        with open(folder.file_path(0), "r+b") as file:
            file.seek(100)
            file.write(b"edited")


def truncate(folder: DatasetFolder) -> None:
    os.truncate(folder.file_path(0), 100)


def replace(folder: DatasetFolder) -> None:
    path = folder.file_path(0)
    path.with_name("other").write_bytes(shard_bytes(0))
    path.with_name("other").rename(path)


def remove(folder: DatasetFolder) -> None:
    folder.file_path(0).unlink()


def touch(folder: DatasetFolder) -> None:
    os.utime(folder.file_path(0), (1, 1))


def reboot(folder: DatasetFolder) -> None:
    with open(folder.state.path, "r+b") as file:
        file.seek(4096 + RECORD.fields["boot"][1])
        file.write(b"another boot")


@pytest.mark.parametrize(
    ("event", "with_hash", "without_hash", "partial"),
    [
        (kill_here, "ok", "ok", "ok"),
        (edit, "rehash", "drop", "drop"),
        (truncate, "drop", "drop", "drop"),
        (replace, "rehash", "drop", "drop"),
        (remove, "drop", "drop", "drop"),
        (touch, "rehash", "drop", "drop"),
        (reboot, "rehash", "drop", "drop"),
    ],
)
def test_what_a_restart_trusts(
    store: CacheStore, event: Callable[[DatasetFolder], None], with_hash: str, without_hash: str, partial: str
) -> None:
    """Unchanged since we wrote it, no reboot: trusted. Else complete files are hashed where possible, or dropped."""
    verdicts = []
    for hashes, complete in ((True, True), (False, True), (True, False)):
        folder = store.folder(add_dataset(store, hashes=hashes, version=f"{hashes}{complete}"))
        fill_file(folder, 0, complete=complete)
        store.release(folder.id)
        event(folder := store.folder(folder.id))
        verdicts.append(reopened(store, folder).check_file(0))
    assert verdicts == [with_hash, without_hash, partial]


def test_a_file_in_mid_fill_is_dropped(store: CacheStore, folder: DatasetFolder) -> None:
    """kill -9 during a fill costs that file."""
    fill_file(folder, 1)
    fd = folder.open_file(0)
    folder.begin_fill(0)
    os.pwrite(fd, b"half", 0)
    os.close(fd)
    later = reopened(store, folder)
    assert (later.check_file(0), later.check_file(1)) == ("drop", "ok")


def test_the_last_of_several_fills_makes_it_clean(store: CacheStore, folder: DatasetFolder) -> None:
    """While one of two fills of a file still writes, the file is dirty."""
    fd = folder.open_file(0)
    folder.begin_fill(0)
    folder.begin_fill(0)
    os.pwrite(fd, shard_bytes(0)[:4096], 0)
    folder.end_fill(0, fd)
    assert folder.state.get(0).dirty
    folder.end_fill(0, fd)
    os.close(fd)
    assert reopened(store, folder).check_file(0) == "ok"


def test_our_own_hash_serves_where_the_index_has_none(store: CacheStore) -> None:
    """A complete file with a recorded hash is hashed after a reboot, not dropped."""
    folder = store.folder(add_dataset(store, hashes=False))
    fill_file(folder, 0)
    folder.note(0, own_hash="sha1:abc")
    store.release(folder.id)
    reboot(folder := store.folder(folder.id))
    later = reopened(store, folder)
    assert later.check_file(0) == "rehash"
    assert later.expected_hashes(0) == {"sha1": "abc"}


def test_a_punched_file_stays_trusted_but_not_complete(store: CacheStore, folder: DatasetFolder) -> None:
    """What eviction left of a file is served by the next engine."""
    fill_file(folder, 0)
    folder.punch(0, 0, 8192)
    later = reopened(store, folder)
    assert later.check_file(0) == "ok"
    assert not later.state.get(0).complete


def test_a_dropped_file_starts_over_with_its_version(store: CacheStore, folder: DatasetFolder) -> None:
    """Dropping a truncated file makes room for a new one of the right size; the object stays pinned to its ETag."""
    fill_file(folder, 0)
    store.release(folder.id)
    truncate(folder := store.folder(folder.id))
    assert folder.check_file(0) == "drop"
    assert folder.drop_file(0)
    assert folder.state.get(0).etag == '"v1"'
    fill_file(folder, 0)
    assert read(folder, 0) == shard_bytes(0)
    assert reopened(store, folder).check_file(0) == "ok"


def test_a_version_too_long_to_record_costs_partial_files_only(store: CacheStore, folder: DatasetFolder) -> None:
    """Without its ETag a partial file could be continued with another version: it is dropped instead."""
    for n, complete in ((0, True), (1, False)):
        fill_file(folder, n, complete=complete)
        folder.note(n, etag="x" * 500)
    later = reopened(store, folder)
    assert (later.check_file(0), later.check_file(1)) == ("ok", "drop")


def test_deleting_shows_old_readers_odd_generations(store: CacheStore, folder: DatasetFolder) -> None:
    """A reader of a killed engine, which maps the residency table, stops trusting what it copies."""
    with_table = ResidencyWriter.open(folder.residency_path, folder.tables.files["size"])
    fill_file(folder, 0)
    with_table.set_blocks(0, 0, 10)
    store.release(folder.id)
    assert with_table.generation(0) % 2 == 0
    assert store.delete(folder.id)
    assert with_table.generation(0) % 2 == 1
    with_table.close()


# ---- published -------------------------------------------------------------------------------------------------------


@pytest.fixture
def published(store: CacheStore, tmp_path: Path) -> DatasetFolder:
    folder = store.folder(add_dataset(store, publish=tmp_path / "local"), publish=tmp_path / "local")
    if not folder.leases_are_honest:
        pytest.skip("this filesystem cannot say who has a file open")
    return folder


def test_a_complete_shard_gets_its_name(published: DatasetFolder, tmp_path: Path) -> None:
    """Beside the index as shown; nothing unverified does."""
    fill_file(published, 0)
    fill_file(published, 1, level="transport")
    for n in range(2):
        published.publish(n)
    assert sorted(os.listdir(tmp_path / "local")) == [".partial", "index.json", "shard.00000.mds"]
    assert (tmp_path / "local" / "shard.00000.mds").read_bytes() == shard_bytes(0)


def test_a_shard_without_a_hash_gets_its_name(store: CacheStore, tmp_path: Path) -> None:
    """It can't be verified any better than it is; one that is not complete does not."""
    folder = store.folder(add_dataset(store, hashes=False, publish=tmp_path / "local"), publish=tmp_path / "local")
    fill_file(folder, 0, level="transport")
    fill_file(folder, 1, complete=False, level="transport")
    for n in range(2):
        folder.publish(n)
    assert sorted(os.listdir(tmp_path / "local")) == [".partial", "index.json", "shard.00000.mds"]


def test_the_next_engine_finds_a_published_dataset(tmp_path: Path) -> None:
    """By its link, as one of those that count; not any more when somebody has removed its folder."""
    with CacheStore.open(tmp_path / "cache") as store:
        name = add_dataset(store, publish=tmp_path / "local")
    with CacheStore.open(tmp_path / "cache") as store:
        assert store.dataset_ids() == [name]
        assert store.folder(name).path == tmp_path / "local" / ".partial"
    shutil.rmtree(tmp_path / "local")
    with CacheStore.open(tmp_path / "cache") as store:
        assert store.dataset_ids() == []


def test_a_cache_with_a_published_dataset_can_be_moved(tmp_path: Path) -> None:
    """What stands inside it is found at the new place."""
    with CacheStore.open(tmp_path / "cache") as store:
        name = add_dataset(store, publish=tmp_path / "cache" / "local")
    (tmp_path / "cache").rename(tmp_path / "moved")
    with CacheStore.open(tmp_path / "moved") as store:
        assert store.folder(name).path == tmp_path / "moved" / "local" / ".partial"


def test_what_a_killed_engine_left_beside_a_published_dataset_is_removed(tmp_path: Path) -> None:
    """A folder half removed, an index half written."""
    with CacheStore.open(tmp_path / "cache") as store:
        add_dataset(store, publish=tmp_path / "local")
    (tmp_path / "local" / ".trash-partial-1").mkdir()
    (tmp_path / "local" / ".mdsfs-index-1").write_text("x")
    CacheStore.open(tmp_path / "cache").close()
    assert sorted(os.listdir(tmp_path / "local")) == [".partial", "index.json"]


def test_a_published_shard_survives_a_restart(store: CacheStore, published: DatasetFolder) -> None:
    """Nothing is fetched or hashed again."""
    fill_file(published, 0)
    published.publish(0)
    assert reopened(store, published).check_file(0) == "ok"


def test_a_published_shard_that_vanished_is_not_made_of_zeros(published: DatasetFolder) -> None:
    """Until the next engine fetches it again, its absence is an error."""
    fill_file(published, 0)
    published.publish(0)
    published.file_path(0).unlink()
    with pytest.raises(CacheDirectoryError):
        published.read_fd(0)
    assert not published.file_path(0).exists()


def test_a_shard_that_others_have_open_is_not_punched(published: DatasetFolder, tmp_path: Path) -> None:
    """Without our pin, a mapping or descriptor of any program keeps it; afterwards it loses its name with its bytes."""
    fill_file(published, 0)
    published.publish(0)
    with open(tmp_path / "local" / "shard.00000.mds", "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    assert not published.punch(0, 0, 4096)
    assert mapped[:] == shard_bytes(0)
    mapped.close()
    assert published.punch(0, 0, 4096)
    assert not (tmp_path / "local" / "shard.00000.mds").exists()
    assert read(published, 0) == bytes(4096) + shard_bytes(0)[4096:]


def test_a_foreign_file_under_our_name_is_not_damaged(
    store: CacheStore, published: DatasetFolder, tmp_path: Path
) -> None:
    """What somebody put there is neither served nor punched; the next complete fill takes its place."""
    fill_file(published, 0)
    published.publish(0)
    final = tmp_path / "local" / "shard.00000.mds"
    final.unlink()
    final.write_bytes(b"mine")
    later = reopened(store, published)
    assert later.check_file(0) == "drop"
    assert later.drop_file(0)
    assert final.read_bytes() == b"mine"
    fill_file(later, 0)
    later.publish(0)
    assert final.read_bytes() == shard_bytes(0)


def test_a_rename_that_was_cut_off_is_finished(store: CacheStore, published: DatasetFolder) -> None:
    """kill -9 between record and rename: the next engine completes it and at most hashes the file."""
    fill_file(published, 0)
    published.state.note(0, None, published=True)
    later = reopened(store, published)
    assert later.check_file(0) in ("ok", "rehash")
    assert read(later, 0) == shard_bytes(0)
