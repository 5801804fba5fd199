"""merge_index: which indexes are joined, what the shards are called afterwards, and what is refused."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

import pytest

from streaming import JSONWriter, LocalDataset, MDSWriter
from streaming.base.storage import download_file
from streaming.base.util import merge_index
from streaming.errors import DatasetError, IndexFormatError, SourceMissingError, StreamingError

if TYPE_CHECKING:
    from pathlib import Path

    from tests.servers import StorageServer


def write(folder: Path, first: int, count: int = 5) -> Path:
    """A dataset of `count` numbers from `first`, in shards of a few samples; its index."""
    with MDSWriter(columns={"n": "int"}, out=folder, size_limit=200) as writer:
        for number in range(first, first + count):
            writer.write({"n": number})
    return folder / "index.json"


def numbers(folder: Path) -> list[int]:
    """What a reader finds."""
    return [sample["n"] for sample in LocalDataset(folder)[:]]


def basenames(folder: Path) -> list[str]:
    """The raw files that the index names."""
    return [shard["raw_data"]["basename"] for shard in json.loads((folder / "index.json").read_text())["shards"]]


def test_listed_partitions_are_read_in_the_order_of_the_list(tmp_path: Path) -> None:
    """The samples follow the list, and shards are found in their partitions' folders."""
    second, first = write(tmp_path / "b", 5), write(tmp_path / "a", 0)
    merge_index([str(second), str(first)], str(tmp_path))
    assert numbers(tmp_path) == [5, 6, 7, 8, 9, 0, 1, 2, 3, 4]
    assert {name.partition("/")[0] for name in basenames(tmp_path)} == {"a", "b"}


def test_root_form_takes_every_index_below_it_by_path(tmp_path: Path) -> None:
    """Partitions at any depth, sorted by path; other JSON files and hidden folders are left alone."""
    write(tmp_path / "2" / "deep" / "er", 5)
    write(tmp_path / "1", 0)
    write(tmp_path / ".partial" / "x", 100)
    (tmp_path / "1" / "notes.json").write_text("{}")
    merge_index(str(tmp_path))
    assert numbers(tmp_path) == list(range(10))
    assert basenames(tmp_path)[-1].startswith("2/deep/er/shard.")


def test_merging_again_gives_the_same(tmp_path: Path) -> None:
    """The merged index of the root is no partition."""
    write(tmp_path / "a", 0)
    write(tmp_path / "b", 5)
    merge_index(tmp_path)
    once = (tmp_path / "index.json").read_bytes()
    merge_index(out=str(tmp_path))
    assert (tmp_path / "index.json").read_bytes() == once


def test_appending_to_a_dataset(tmp_path: Path) -> None:
    """An index of the target itself keeps its names: a folder of new shards is appended."""
    old, new = write(tmp_path, 0), write(tmp_path / "more", 5)
    merge_index([old, new], tmp_path)
    assert numbers(tmp_path) == list(range(10))
    merge_index([old, write(tmp_path / "again", 10)], tmp_path)
    assert numbers(tmp_path) == list(range(15))


def test_compressed_and_line_shards(tmp_path: Path) -> None:
    """All four file names of a shard gain the prefix."""
    with JSONWriter(columns={"n": "int"}, out=tmp_path / "a", compression="zstd", hashes="sha1") as writer:
        writer.write({"n": 0})
    merge_index(tmp_path)
    (shard,) = json.loads((tmp_path / "index.json").read_text())["shards"]
    for key in ("raw_data", "zip_data", "raw_meta", "zip_meta"):
        assert shard[key]["basename"].startswith("a/shard.00000.json")
    assert numbers(tmp_path) == [0]


def test_the_same_index_twice_counts_once(tmp_path: Path) -> None:
    """Repeated places in the list are one."""
    index = write(tmp_path / "a", 0)
    merge_index([str(index), f"{index}/", str(index)], str(tmp_path))
    assert numbers(tmp_path) == [0, 1, 2, 3, 4]


def test_a_nested_merged_index_is_refused(tmp_path: Path) -> None:
    """Where two indexes name the same shard the error names both, and there is no merged index."""
    write(tmp_path / "a" / "x", 0)
    merge_index(tmp_path / "a")
    with pytest.raises(DatasetError, match=r"a/x/index.json and .*a/index.json both name a/x/shard.00000.mds"):
        merge_index(tmp_path)
    assert not (tmp_path / "index.json").exists()


@pytest.mark.parametrize("damage", ["missing", "broken"])
def test_nothing_is_written_unless_all_is_read(tmp_path: Path, damage: str) -> None:
    """One partition that is missing or broken: an error that names it, and the old index stays."""
    old = write(tmp_path, 0).read_bytes()
    good, bad = write(tmp_path / "a", 0), tmp_path / "b" / "index.json"
    if damage == "broken":
        bad.parent.mkdir()
        bad.write_text('{"shards": [{}], "version": 2}')
    expected: type[StreamingError] = {"missing": SourceMissingError, "broken": IndexFormatError}[damage]
    with pytest.raises(expected, match=r"/b[:/]"):
        merge_index([str(good), str(bad)], str(tmp_path))
    assert (tmp_path / "index.json").read_bytes() == old


def test_local_copies_stand_in_for_the_remote(tmp_path: Path) -> None:
    """(path, URL): the URL is read where the path is not there, and the index goes to both places."""
    local, remote = tmp_path / "local", tmp_path / "remote"
    for place in (local, remote):
        write(place / "a", 0)
    write(remote / "b", 5)
    pairs = [(str(local / name / "index.json"), str(remote / name / "index.json")) for name in "ab"]
    merge_index(pairs, (str(local), f"file://{remote}"))
    assert numbers(remote) == list(range(10))
    assert (local / "index.json").read_bytes() == (remote / "index.json").read_bytes()


def test_keep_local_false_removes_the_local_index_only(tmp_path: Path) -> None:
    """The merged index is at the remote alone; the partitions stay."""
    local, remote = tmp_path / "local", tmp_path / "remote"
    for place in (local, remote):
        write(place / "a", 0)
    merge_index((str(local), str(remote)), keep_local=False)
    assert not (local / "index.json").exists()
    assert numbers(local / "a") == numbers(remote) == [0, 1, 2, 3, 4]


def test_a_bucket(moto: StorageServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Partitions in a bucket are found by listing, joined, and the index uploaded; so is a list."""
    for name, value in moto.variables.items():
        monkeypatch.setenv(name, value)
    for part in ("a/x", "b"):
        write(tmp_path / part, len(part))
    moto.put_tree("merge", tmp_path)
    root = moto.url("merge")
    merge_index(root)
    merge_index(tmp_path)
    client = moto.client()
    merged = client.get_object(Bucket=moto.bucket, Key="merge/index.json")["Body"].read()
    client.close()
    assert merged == (tmp_path / "index.json").read_bytes()
    merge_index([f"{root}/b/index.json", f"{root}/a/x/index.json"], f"{root}/", download_timeout=30)
    target = tmp_path / "copy"
    download_file(f"{root}/index.json", str(target / "index.json"))
    assert list(dict.fromkeys(name.rpartition("/")[0] for name in basenames(target))) == ["b", "a/x"]


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    """Arguments of neither form, and a merge that would leave no index anywhere."""
    for arguments in ((), (5,), ([], "a", True, 60, "more"), ("a", True, 60, "more")):
        with pytest.raises(ValueError, match="Invalid arguments to merge_index: "):
            merge_index(*arguments)
    with pytest.raises(ValueError, match="keep_local=False needs a URL"):
        merge_index(str(tmp_path), keep_local=False)
    with pytest.raises(ValueError, match="out: expected a folder, a URL"):
        merge_index(["a/index.json"], ("a", "b", "c"))


def test_nothing_to_merge_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Empty arguments and a folder without partitions: a line in the log, no index."""
    with caplog.at_level(logging.WARNING):
        merge_index([], str(tmp_path))
        merge_index("")
        merge_index(str(tmp_path))
    assert [record.getMessage() for record in caplog.records] == [
        "Either index_file_urls or out are None. Need to specify both `index_file_urls` and `out`. No index merged",
        "No MDS dataset folder specified, no index merged",
        f"no index.json in any folder below {tmp_path}, no index merged",
    ]
    assert not (tmp_path / "index.json").exists()


def test_a_partition_elsewhere_keeps_its_folders_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The prefix is then the last folder, as in mosaicml-streaming, and a warning says what is left to do."""
    index = write(tmp_path / "elsewhere" / "a", 0)
    merge_index([str(index)], str(tmp_path / "out"))
    assert basenames(tmp_path / "out")[0] == "a/shard.00000.mds"
    assert "move its shards there" in caplog.text
