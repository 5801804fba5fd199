"""`mdsfs ls`: datasets and files of sources and caches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.repack.datasets import WRITERS, samples_of, write_mds

from .caches import MIB, Data, Engine, Reader, Run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.servers import StorageServer


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two datasets, one of which lacks a shard."""
    write_mds(tmp_path / "source" / "train", compression="zstd")
    WRITERS["csv"](tmp_path / "source" / "val", hashes=None)
    (tmp_path / "source" / "train" / "shard.00003.mds.zstd").unlink()
    return tmp_path / "source"


def test_datasets_of_a_source(run: Run, source: Path) -> None:
    """A line a dataset: how much there is, in which form, and whether all of it is there."""
    head, train, val = run.ok("ls", source).splitlines()
    assert head.split() == ["NAME", "SHARDS", "SAMPLES", "SIZE", "STORED", "COMPRESSION", "HASHES", "STATE"]
    assert train.split()[:3] == ["train", "7", "60"]
    assert (
        train.split(maxsplit=7)[5:] == ["KiB", "zstd", "sha1        1 missing or of another size"] or "missing" in train
    )
    assert val.split()[:3] == ["val", "2", "60"]
    assert val.split()[-3:] == ["none", "none", "complete"]


def test_files_of_a_source(run: Run, source: Path) -> None:
    """With -l a line a file; what is missing or of another size says so."""
    path = source / "val" / "shard.00001.csv"
    path.write_bytes(path.read_bytes() + b"x")
    lines = run.ok("ls", "-l", source).splitlines()
    states = {line.split()[0]: line.split()[-1] for line in lines if "shard" in line}
    assert states["train/shard.00002.mds.zstd"] == "there"
    assert states["train/shard.00003.mds.zstd"] == "missing"
    assert states["val/shard.00001.csv"] == "bytes"
    assert states["val/shard.00001.csv.meta"] == "there"


def test_json_of_a_source(run: Run, source: Path) -> None:
    """The same as a document; files only with -l."""
    train, val = run.json("ls", source)["datasets"]
    assert (train["name"], train["samples"], train["missing"], train["compression"]) == ("train", 60, 1, ["zstd"])
    assert "files" not in val
    train, val = run.json("ls", "-l", f"file://{source}")["datasets"]
    assert len(train["files"]) == 7
    assert sum(each["stored"] for each in val["files"]) == val["stored"]


def test_an_index_of_something_else(run: Run, source: Path) -> None:
    """A folder whose index.json is no dataset's is passed over, with a warning."""
    (source / "web").mkdir()
    (source / "web" / "index.json").write_text("{}")
    code, out, err = run("ls", source)
    assert (code, "web" in out, err.startswith("mdsfs: warning: web/index.json is passed over")) == (0, False, True)


def test_a_store_that_does_not_list(
    run: Run, nginx: StorageServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the root's dataset is all that is known, and whether its files are there is not; it can be repacked."""
    for name, value in nginx.variables.items():
        monkeypatch.setenv(name, value)
    write_mds(tmp_path / "ds")
    nginx.put_tree("unlisted", tmp_path / "ds")
    code, out, err = run("ls", nginx.url("unlisted"))
    assert (code, out.splitlines()[1].split()[0], out.split()[-1]) == (0, ".", "unknown")
    assert err.startswith("mdsfs: warning: cannot list s3://bucket/unlisted")
    code, out, _ = run("repack", nginx.url("unlisted"), tmp_path / "new")
    assert (code, samples_of(tmp_path / "new")) == (0, samples_of(tmp_path / "ds"))


def test_what_a_cache_holds(run: Run, engine: Engine, data: Data) -> None:
    """Datasets of a cache directory, and with -l every file with its state; with an engine and without."""
    with engine.client() as client:
        reader = Reader(client, str(data.folder), data)
        reader.check(0, 0, MIB)
        reader.check(1, 0, 4096)
        reader.close()
    engine.settled()
    for users in (0, None):
        (found,) = run.json("ls", "--cache-dir", engine.cache, "-l")["datasets"]
        assert (found["url"], found["users"]) == (str(data.folder), users)
        assert (found["complete"], found["partial"], found["files"]) == (1, 1, 6)
        assert [each["state"] for each in found["rows"]] == ["complete", "partial"] + ["absent"] * 4
        assert found["rows"][0]["level"] == "frame"
        engine.stop()
    head, line = run.ok("ls", "--cache-dir", engine.cache).splitlines()
    assert head.split()[:4] == ["NAME", "FILES", "SIZE", "RESIDENT"]
    assert line.split()[:4] == [str(data.folder), "6", "6.00", "MiB"]


def test_places_that_are_none(run: Run, tmp_path: Path) -> None:
    """Neither or both: 2. Nothing there: 3. Not a cache: 7."""
    assert run.failing("ls")[0] == 2
    assert run.failing("ls", tmp_path, "--cache-dir", tmp_path)[0] == 2
    assert run.failing("ls", tmp_path)[0] == 3
    code, err = run.failing("ls", "--cache-dir", tmp_path)
    assert (code, "is not a cache of mdsfs" in err) == (7, True)
