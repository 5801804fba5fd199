"""`mdsfs verify`: what is wrong with a source, or in a cache, is found and named."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.repack.datasets import WRITERS, index_of, write_mds

from .caches import MIB, Data, Engine, Reader, Run

if TYPE_CHECKING:
    from pathlib import Path


def damage(path: Path, at: int) -> None:
    """Another byte there, in place."""
    fd = os.open(path, os.O_RDWR)
    at = at % os.fstat(fd).st_size
    os.pwrite(fd, bytes([os.pread(fd, 1, at)[0] ^ 255]), at)
    os.close(fd)


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("stored", [None, "zstd", "gz"])
def test_good_sources(run: Run, tmp_path: Path, form: str, stored: str | None) -> None:
    """Every form is read as a whole, and nothing is found."""
    WRITERS[form](tmp_path / "ds", compression=stored)
    shards = len(index_of(tmp_path / "ds").shards)
    out = run.ok("verify", tmp_path / "ds")
    assert out.startswith(f"{shards} shards of 1 datasets, 60 samples, ")
    assert out.endswith(": none bad\n")


def test_every_bad_shard_is_a_line(run: Run, tmp_path: Path) -> None:
    """Damaged, cut off, gone: each is named with what is wrong, the others are checked all the same; 6."""
    write_mds(tmp_path / "ds" / "a")
    write_mds(tmp_path / "ds" / "b", compression="zstd")
    damage(tmp_path / "ds" / "a" / "shard.00001.mds", -1)
    (tmp_path / "ds" / "a" / "shard.00002.mds").unlink()
    os.truncate(tmp_path / "ds" / "b" / "shard.00000.mds.zstd", 100)
    damage(tmp_path / "ds" / "b" / "shard.00005.mds.zstd", -200)
    code, out, err = run("verify", tmp_path / "ds")
    assert (code, err) == (6, "")
    *lines, summary = out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "bad  a/shard.00001.mds",
        "bad  a/shard.00002.mds",
        "bad  b/shard.00000.mds.zstd",
        "bad  b/shard.00005.mds.zstd",
    ]
    assert "expected sha1" in lines[0]
    assert "no such file" in lines[1]
    assert "bytes, got 100" in lines[2]
    assert summary.startswith("14 shards of 2 datasets, 120 samples")
    assert summary.endswith(": 4 bad")


def test_json_of_a_source(run: Run, tmp_path: Path) -> None:
    """The findings as a document."""
    write_mds(tmp_path / "ds")
    damage(tmp_path / "ds" / "shard.00001.mds", -1)
    code, out, _ = run("verify", tmp_path / "ds", "--json", "--jobs", "3")
    assert code == 6
    assert '"shard": "shard.00001.mds"' in out
    assert '"unhashed": 0' in out


def test_without_hashes_the_samples_are_checked(run: Run, tmp_path: Path) -> None:
    """Offsets that are none are found; that there was nothing to compare with is said."""
    write_mds(tmp_path / "ds", hashes=None)
    assert ", 7 without a hash: none bad" in run.ok("verify", tmp_path / "ds")
    damage(tmp_path / "ds" / "shard.00004.mds", 6)
    code, out, _ = run("verify", tmp_path / "ds")
    assert (code, "bad  shard.00004.mds: " in out, "offsets" in out) == (6, True, True)


def test_a_broken_index(run: Run, tmp_path: Path) -> None:
    """An index that is none is an error of its own: there is nothing to check."""
    write_mds(tmp_path / "ds")
    text = (tmp_path / "ds" / "index.json").read_text()
    (tmp_path / "ds" / "index.json").write_text(text.replace('"samples": 9', '"samples": -9'))
    code, err = run.failing("verify", tmp_path / "ds")
    assert (code, "samples: expected an integer" in err) == (6, True)


def test_a_cache(run: Run, engine: Engine, data: Data) -> None:
    """Complete files are compared with their hashes, through the engine or without one; partial ones are counted."""
    with engine.client() as client:
        reader = Reader(client, str(data.folder), data)
        for file in range(3):
            reader.check(file, 0, MIB)
        reader.check(3, 0, 4096)
        reader.close()
    assert run.ok("verify", "--cache-dir", engine.cache) == (
        "3 complete files, 3.00 MiB, 1 partial ones can't be compared: none bad\n"
    )
    (folder,) = [each for each in engine.cache.iterdir() if each.is_dir()]
    damage(folder / "files" / "1", 5000)
    for _ in range(2):
        code, out, err = run("verify", "--cache-dir", engine.cache)
        assert (code, err) == (6, "")
        assert out.startswith(f"bad  {data.folder}/shard.00001.mds: expected sha1 ")
        assert out.endswith(": 1 bad\n")
        engine.stop()


def test_places_that_are_none(run: Run, tmp_path: Path) -> None:
    """Neither or both: 2. Nothing there: 3. Not a cache: 7."""
    assert run.failing("verify")[0] == 2
    assert run.failing("verify", tmp_path, "--cache-dir", tmp_path)[0] == 2
    assert run.failing("verify", tmp_path / "no")[0] == 3
    assert run.failing("verify", "--cache-dir", tmp_path / "no")[0] == 7
