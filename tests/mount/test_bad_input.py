"""What can't be mounted: one line, the documented exit code, and nothing left behind."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from mdsfs.mount.mountpoint import mount_at

from .harness import why_not_mountable
from .host import Host, write_dataset

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers import StorageServer

pytestmark = [
    pytest.mark.mounted,
    pytest.mark.skipif(why_not_mountable() is not None, reason=str(why_not_mountable())),
]


@pytest.fixture
def host(tmp_path: Path, moto: StorageServer) -> Iterator[Host]:
    with Host(tmp_path, moto.variables) as host:
        yield host


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small sound dataset."""
    write_dataset(tmp_path / "source", 10)
    return tmp_path / "source"


def refused(host: Host, code: int, what: str, source: str | Path, *options: str) -> None:
    """The mount fails with this code and one line that contains `what`; nothing is left on the mountpoint."""
    done = host.mount(source, *options)
    assert (done.returncode, done.stdout) == (code, ""), done
    assert done.stderr.startswith("mdsfs: ")
    assert done.stderr.count("\n") == 1
    assert what in done.stderr
    assert mount_at(str(host.mountpoint)) is None
    assert list(host.mountpoint.iterdir()) == []


def test_sources_that_are_not_there(host: Host, moto: StorageServer, tmp_path: Path) -> None:
    """A missing path, bucket or prefix is 3; an endpoint where nobody listens is 5; an unknown scheme 2."""
    refused(host, 3, "nothing", tmp_path / "nothing")
    refused(host, 3, "no-such-bucket", "s3://no-such-bucket/x")
    refused(host, 3, "empty/prefix", moto.url("empty/prefix"))
    refused(host, 5, "127.0.0.1:9", moto.url("x"), "--endpoint-url=http://127.0.0.1:9")
    refused(host, 2, "gopher", "gopher://x/y")


def index(**changes: Any) -> bytes:
    shard = {
        "column_encodings": ["int"],
        "column_names": ["i"],
        "column_sizes": [8],
        "compression": None,
        "format": "mds",
        "hashes": [],
        "raw_data": {"basename": "shard.00000.mds", "bytes": 100, "hashes": {}},
        "samples": 1,
        "size_limit": 67108864,
        "version": 2,
        "zip_data": None,
    }
    return json.dumps({"shards": [{**shard, **changes}], "version": 2}).encode()


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "index.json"),
        (b"{", "index.json"),
        (b"[1, 2]", "index.json"),
        (json.dumps({"version": 3, "shards": []}).encode(), "version"),
        (index(raw_data={"basename": "../evil", "bytes": 1, "hashes": {}}), "../evil"),
        (index(raw_data={"basename": "/etc/passwd", "bytes": 1, "hashes": {}}), "/etc/passwd"),
        (index(raw_data={"basename": "shard", "bytes": -5, "hashes": {}}), "-5"),
        (index(samples=-1), "samples"),
    ],
    ids=["empty", "cut off", "a list", "version 3", "leaves", "absolute", "negative size", "negative samples"],
)
def test_indexes_that_are_wrong(host: Host, tmp_path: Path, data: bytes, what: str) -> None:
    """An index that breaks the format is 6, and what is wrong is named."""
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "index.json").write_bytes(data)
    refused(host, 6, what, tmp_path / "bad")


def test_cache_directories_that_cannot_be_used(host: Host, source: Path, tmp_path: Path) -> None:
    """A file, somebody's folder, a folder of somebody else, one that can't be made: 7."""
    file = tmp_path / "file"
    file.write_text("")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    for path in (file, foreign, tmp_path / "file" / "below"):
        refused(host, 7, str(path), source, f"--cache-dir={path}")
    assert [each.name for each in foreign.iterdir()] == ["thesis.tex"]
    if os.geteuid() == 0:
        others = tmp_path / "others"
        others.mkdir()
        os.chown(others, 12345, 12345)
        refused(host, 7, str(others), source, f"--cache-dir={others}")


def test_a_cache_limit_that_is_too_small(host: Host, source: Path) -> None:
    """A limit below what the dataset needs is 7, with the figure."""
    refused(host, 7, "bytes", source, "--cache-limit=1mb")


def test_a_second_engine_with_other_options(host: Host, source: Path, tmp_path: Path) -> None:
    """A mount that wants another limit than the running engine has is 7, naming both; the first is not disturbed."""
    host.mounted(source)
    (tmp_path / "second").mkdir()
    argv = ("mount", source, tmp_path / "second", "--cache-dir", host.cache, "--cache-limit", "512mb")
    done = host.run(*argv)
    assert done.returncode == 7
    assert "268435456" in done.stderr
    assert "536870912" in done.stderr
    assert (host.mountpoint / "shard.00000.mds").read_bytes()


def test_other_credentials(host: Host, moto: StorageServer, source: Path, tmp_path: Path) -> None:
    """A mount as somebody else, of what the engine has open already, is 7."""
    moto.put_tree("who", source)
    host.mounted(moto.url("who"))
    (tmp_path / "second").mkdir()
    host.environment["AWS_ACCESS_KEY_ID"] = "SOMEBODYELSE"
    done = host.run("mount", moto.url("who"), tmp_path / "second", "--cache-dir", host.cache)
    assert done.returncode == 7
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk for the test")
def test_a_full_disk(host: Host, tmp_path: Path) -> None:
    """When the disk is full although the limit is not reached, every read gives the right bytes, past the cache."""
    raw = write_dataset(tmp_path / "big", 200, 60_000, size_limit=1 << 20, compression="zstd")
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m,mode=700", "none", str(small)], check=True)
    try:
        host.cache = small / "cache"
        mount = host.mounted(tmp_path / "big")
        outcomes = {read_or_errno(mount / name, data) for name, data in raw.items()}
        assert outcomes == {0}
        assert host.run("umount", mount).returncode == 0
        host.stop_engine()
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def read_or_errno(path: Path, data: bytes) -> int:
    """0 if the file has exactly these bytes, the errno if it can't be read."""
    try:
        found = path.read_bytes()
    except OSError as error:
        return error.errno or -1
    assert found == data
    return 0
