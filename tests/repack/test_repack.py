"""Repacked datasets: the same samples in the same order, stored anew, every byte compared on the way."""

from __future__ import annotations

import os
import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mdsfs.errors import UsageError
from mdsfs.repack.run import Repacked, repack
from mdsfs.repack.target import Target
from streaming.errors import (
    CredentialsRefusedError,
    DatasetError,
    ShardCorruptError,
    ShardFormatError,
    SourceMissingError,
)
from streaming.mds.compression import decompress
from streaming.mds.hashing import hash_all
from streaming.mds.layout import read_offsets
from streaming.mds.seekable import SeekTable, compress_seekable, plan_frames
from streaming.merge import merge_index
from streaming.remote import RemoteOptions, open_remote
from streaming.remote.local import LocalRemote
from streaming.writer import MDSWriter

from .datasets import WRITERS, files_of, index_of, samples_of, write_mds

if TYPE_CHECKING:
    from pathlib import Path

    from tests.servers import StorageServer


def run(source: Any, destination: Any, target: Target | None = None, *, jobs: int = 2) -> Repacked:
    """A repack between two places."""
    return repack(open_remote(source), open_remote(destination), target or Target(frame=4096), jobs=jobs)


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("stored", [None, "zstd", "gz"])
@pytest.mark.parametrize("target", [Target(), Target("zstd:1", None), Target("zstd", 1024), Target(None)], ids=str)
def test_samples_stay_what_they_are(tmp_path: Path, form: str, stored: str | None, target: Target) -> None:
    """From every form into every form: the same raw files, hence the same samples in the same order."""
    WRITERS[form](tmp_path / "old", compression=stored)
    done = run(tmp_path / "old", tmp_path / "new", target)
    old, new = index_of(tmp_path / "old"), index_of(tmp_path / "new")
    assert [each.shown() for each in new.shards] == [each.shown() for each in old.shards]
    assert {each.compression for each in new.shards} == {target.compression}
    assert samples_of(tmp_path / "new") == samples_of(tmp_path / "old")
    assert (done.datasets, done.shards, done.samples, done.found_done) == (1, len(old.shards), 60, 0)
    names = {(stored or raw).basename for shard in new.shards for raw, stored in shard.files()}
    assert files_of(tmp_path / "new").keys() == names | {"index.json"}


@pytest.mark.parametrize("frame", [None, 3000, 1 << 18])
def test_frames_are_those_of_a_writer(tmp_path: Path, frame: int | None) -> None:
    """The stored bytes are what a writer with this frame makes of the same raw bytes."""
    write_mds(tmp_path / "old")
    run(tmp_path / "old", tmp_path / "new", Target("zstd:5", frame))
    for shard in index_of(tmp_path / "new").shards:
        assert shard.zip_data is not None
        raw = (tmp_path / "old" / shard.raw_data.basename).read_bytes()
        stored = (tmp_path / "new" / shard.zip_data.basename).read_bytes()
        cuts = read_offsets(raw, shard.samples, len(raw))
        assert stored == compress_seekable(raw, plan_frames(cuts, frame), 5)


def test_lines_are_not_cut_by_frames(tmp_path: Path) -> None:
    """Frames of a split shard's data file end where its lines do."""
    WRITERS["json"](tmp_path / "old", size_limit=None)
    run(tmp_path / "old", tmp_path / "new", Target("zstd", 300))
    raw = (tmp_path / "old" / "shard.00000.json").read_bytes()
    stored = (tmp_path / "new" / "shard.00000.json.zstd").read_bytes()
    table = SeekTable.parse(stored, len(stored), len(raw))
    assert table is not None
    assert len(table) > 5
    assert all(raw[at - 1 : at] == b"\n" for at in table.raw_at[1:].tolist())


@pytest.mark.parametrize("before", [None, "md5"])
@pytest.mark.parametrize("hashes", [None, (), ("sha1", "xxh3_64")])
def test_hashes(tmp_path: Path, before: str | None, hashes: tuple[str, ...] | None) -> None:
    """Those asked for, else those that were there; each is of the bytes that are there."""
    write_mds(tmp_path / "old", hashes=before)
    run(tmp_path / "old", tmp_path / "new", Target(hashes=hashes))
    for shard in index_of(tmp_path / "new").shards:
        assert shard.hashes == ((before,) if hashes is None and before else hashes or ())
        assert shard.zip_data is not None
        data = (tmp_path / "new" / shard.zip_data.basename).read_bytes()
        assert hash_all(shard.hashes, data) == shard.zip_data.hashes
        assert hash_all(shard.hashes, decompress("zstd", data, shard.raw_data.bytes)) == shard.raw_data.hashes


def test_a_folder_of_datasets(tmp_path: Path) -> None:
    """Splits and nested datasets keep their places; what belongs to none is counted, not copied."""
    for name in ("train", "val/easy"):
        write_mds(tmp_path / "old" / name)
    (tmp_path / "old" / "notes.txt").write_text("a note")
    done = run(tmp_path / "old", tmp_path / "new")
    assert (done.datasets, done.left_out) == (2, 1)
    for name in ("train", "val/easy"):
        assert samples_of(tmp_path / "new" / name) == samples_of(tmp_path / "old" / name)
    assert not (tmp_path / "new" / "notes.txt").exists()


def test_a_merged_index_shares_the_shards_below_it(tmp_path: Path) -> None:
    """Shards that two indexes name are repacked once, and both name them afterwards."""
    for number in range(2):
        write_mds(tmp_path / "old" / str(number))
    merge_index(str(tmp_path / "old"))
    expected = samples_of(tmp_path / "old")
    done = run(tmp_path / "old", tmp_path / "new")
    assert (done.datasets, done.shards) == (3, len(index_of(tmp_path / "old").shards))
    assert samples_of(tmp_path / "new") == expected
    assert samples_of(tmp_path / "new" / "1") == expected[60:]


def test_indexes_that_disagree_are_refused(tmp_path: Path) -> None:
    """One shard described in two ways can't be repacked."""
    write_mds(tmp_path / "old" / "0")
    merge_index(str(tmp_path / "old"))
    text = (tmp_path / "old" / "0" / "index.json").read_text()
    (tmp_path / "old" / "0" / "index.json").write_text(text.replace('"size_limit": 20000', '"size_limit": 20001'))
    with pytest.raises(DatasetError, match=r"0/shard.00000.mds differently"):
        run(tmp_path / "old", tmp_path / "new")


def test_shards_without_samples(tmp_path: Path) -> None:
    """An index of no shard is an index of no shard."""
    with MDSWriter(columns={"x": "int"}, out=tmp_path / "old"):
        pass
    run(tmp_path / "old", tmp_path / "new")
    assert index_of(tmp_path / "new").shards == []


def damage(path: Path, at: int) -> None:
    """Another byte there, and another time, also where the kernel's clock has not ticked since it was written."""
    before = path.stat().st_mtime_ns
    data = bytearray(path.read_bytes())
    data[at] ^= 255
    path.write_bytes(data)
    os.utime(path, ns=(before, before + 10**9))


@pytest.mark.parametrize("stored", [None, "gz"])
def test_wrong_bytes_end_it_before_the_index(tmp_path: Path, stored: str | None) -> None:
    """A shard that is not what its hash says is named; the others stay finished, and after a repair it goes on."""
    write_mds(tmp_path / "old", compression=stored)
    name = index_of(tmp_path / "old").shards[-1].files()[0][1 if stored else 0]
    assert name is not None
    whole = (tmp_path / "old" / name.basename).read_bytes()
    damage(tmp_path / "old" / name.basename, -9)
    with pytest.raises(ShardCorruptError, match=name.basename):
        run(tmp_path / "old", tmp_path / "new", jobs=1)
    assert not (tmp_path / "new" / "index.json").exists()
    (tmp_path / "old" / name.basename).write_bytes(whole)
    done = run(tmp_path / "old", tmp_path / "new")
    assert done.found_done == done.shards - 1
    assert samples_of(tmp_path / "new") == samples_of(tmp_path / "old")


def test_sizes_are_compared(tmp_path: Path) -> None:
    """Also without hashes a shard that is cut off is refused."""
    write_mds(tmp_path / "old", hashes=None)
    shard = tmp_path / "old" / "shard.00000.mds"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ShardCorruptError, match=r"shard.00000.mds: expected \d+ bytes, got \d+"):
        run(tmp_path / "old", tmp_path / "new")


def test_sample_tables_are_checked(tmp_path: Path) -> None:
    """Offsets that are none can't be cut at: the shard is named."""
    write_mds(tmp_path / "old", hashes=None)
    damage(tmp_path / "old" / "shard.00001.mds", 9)
    with pytest.raises(ShardFormatError, match=r"shard.00001.mds"):
        run(tmp_path / "old", tmp_path / "new")


def test_what_was_finished_and_is_gone_is_made_again(tmp_path: Path) -> None:
    """A record is believed only with its shard, in the version that was read back."""
    write_mds(tmp_path / "old")
    lost = tmp_path / "old" / "shard.00005.mds"
    whole = lost.read_bytes()
    lost.unlink()
    with pytest.raises(SourceMissingError):
        run(tmp_path / "old", tmp_path / "new", jobs=1)
    lost.write_bytes(whole)
    (tmp_path / "new" / "shard.00000.mds.zstd").unlink()
    damage(tmp_path / "new" / "shard.00001.mds.zstd", 30)
    assert run(tmp_path / "old", tmp_path / "new").found_done == 3
    assert samples_of(tmp_path / "new") == samples_of(tmp_path / "old")


def test_a_repeated_repack_writes_nothing(tmp_path: Path) -> None:
    """The same command again finds that all is done."""
    write_mds(tmp_path / "old")
    first = run(tmp_path / "old", tmp_path / "new")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "new").iterdir()}
    again = run(tmp_path / "old", tmp_path / "new")
    assert (again.found_done, again.stored_after) == (first.shards, first.stored_after)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "new").iterdir()} == before


@pytest.mark.parametrize("target", [Target(frame=8192), Target(None), Target("zstd:4", 4096), Target(hashes=())])
def test_another_dataset_is_not_overwritten(tmp_path: Path, target: Target) -> None:
    """A destination with a dataset in another form stays as it is."""
    write_mds(tmp_path / "old")
    run(tmp_path / "old", tmp_path / "new")
    before = files_of(tmp_path / "new")
    with pytest.raises(UsageError, match="has another dataset already: choose an empty DEST"):
        run(tmp_path / "old", tmp_path / "new", target)
    assert files_of(tmp_path / "new") == before


def test_an_unfinished_repack_into_another_form_is_not_continued(tmp_path: Path) -> None:
    """Half of the shards in one form and half in another would be no dataset that anybody asked for."""
    write_mds(tmp_path / "old")
    (tmp_path / "old" / "shard.00005.mds").rename(tmp_path / "aside")
    with pytest.raises(SourceMissingError):
        run(tmp_path / "old", tmp_path / "new")
    with pytest.raises(UsageError, match="unfinished repack"):
        run(tmp_path / "old", tmp_path / "new", Target("zstd:9", 4096))


def test_a_shard_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    """32 MiB of raw data pass through a few MiB."""
    rng = np.random.default_rng(0)
    with MDSWriter(columns={"x": "bytes"}, out=tmp_path / "old", size_limit=None, compression="zstd:1") as writer:
        for _ in range(512):
            writer.write({"x": rng.bytes(1 << 16)})
    tracemalloc.start()
    try:
        run(tmp_path / "old", tmp_path / "new", Target("zstd:1"), jobs=1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


class Keeping(LocalRemote):
    """A store that lets nobody delete."""

    def delete(self, key: str) -> None:
        raise CredentialsRefusedError(f"{key}: access denied")


def test_records_that_cannot_be_removed_are_a_warning(tmp_path: Path) -> None:
    """The dataset is whole without the right to delete; what stays behind is named, and does no harm."""
    write_mds(tmp_path / "old")
    destination = Keeping(str(tmp_path / "new"), tmp_path / "new", RemoteOptions())
    for _ in range(2):
        done = repack(open_remote(tmp_path / "old"), destination, Target(), jobs=2)
        assert [warning.partition(":")[0] for warning in done.warnings] == [
            "the records of this repack (.repack/) can't be removed"
        ]
        assert samples_of(tmp_path / "new") == samples_of(tmp_path / "old")


def test_from_store_to_store(tmp_path: Path, moto: StorageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two prefixes of an object store, interrupted and continued: versions are those of the listing."""
    for name, value in moto.variables.items():
        monkeypatch.setenv(name, value)
    write_mds(tmp_path / "old")
    moto.put_tree("repack/old", tmp_path / "old")
    last = (tmp_path / "old" / "shard.00005.mds").read_bytes()
    moto.delete("repack/old/shard.00005.mds")
    with pytest.raises(SourceMissingError):
        run(moto.url("repack/old"), moto.url("repack/new"), jobs=1)
    moto.put("repack/old/shard.00005.mds", last)
    assert run(moto.url("repack/old"), moto.url("repack/new")).found_done == 5
    new = open_remote(moto.url("repack/new"), RemoteOptions.from_environment())
    for info in new.list():
        (tmp_path / "new").mkdir(exist_ok=True)
        (tmp_path / "new" / info.key).write_bytes(new.read(info.key)[0])
    assert len(files_of(tmp_path / "new")) == 8
    assert samples_of(tmp_path / "new") == samples_of(tmp_path / "old")
