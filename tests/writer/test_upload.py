"""Writers into a remote: shards while writing goes on, the index after all of them, failures seen by the caller."""

from __future__ import annotations

import tempfile
import threading
from typing import TYPE_CHECKING, Any

import pytest

from streaming.errors import BucketMissingError, StreamingError
from streaming.mds.index import parse_index
from streaming.writer import MDSWriter
from streaming.writer_upload import Uploader

if TYPE_CHECKING:
    from pathlib import Path

    from tests.servers import StorageServer


def fill(writer: MDSWriter, count: int = 40) -> None:
    """Enough samples for several shards of 300 bytes."""
    for number in range(count):
        writer.write({"x": number})


def fill_and_finish(writer: MDSWriter) -> None:
    """The same as the body of a `with`."""
    with writer:
        fill(writer)


def names(folder: Path) -> list[str]:
    """What is in a folder, sorted; nothing where there is none."""
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize("keyword", [False, True])
@pytest.mark.parametrize("keep_local", [False, True])
def test_a_dataset_in_two_places(tmp_path: Path, keep_local: bool, keyword: bool) -> None:
    """Folder and URL, as a pair or as out= and remote=: all of it is in the remote, and here only if it is kept."""
    local, remote = tmp_path / "local", tmp_path / "remote"
    place: dict[str, Any] = (
        {"out": local, "remote": remote.as_uri()} if keyword else {"out": (str(local), remote.as_uri())}
    )
    with MDSWriter(columns={"x": "int"}, size_limit=300, keep_local=keep_local, max_workers=2, **place) as writer:
        fill(writer)
    index = parse_index((remote / "index.json").read_bytes())
    expected = sorted(["index.json", *(shard.raw_data.basename for shard in index.shards)])
    assert len(expected) > 3
    assert names(remote) == expected
    assert names(local) == (expected if keep_local else [])


def test_shards_arrive_while_writing_goes_on(tmp_path: Path) -> None:
    """A finished shard does not wait for the last one; the index does."""
    remote = tmp_path / "remote"
    writer = MDSWriter(columns={"x": "int"}, out=(str(tmp_path / "local"), remote.as_uri()), size_limit=300)
    fill(writer)
    assert writer._uploader
    writer._uploader.finish()
    assert "shard.00000.mds" in names(remote)
    assert "index.json" not in names(remote)
    writer.finish()
    assert "index.json" in names(remote)


def test_a_failed_upload_is_raised_and_leaves_no_index(tmp_path: Path) -> None:
    """The remote can't be written to: the writing thread learns it, and neither place has an index."""
    remote = tmp_path / "remote"
    remote.write_text("a file, where a folder is needed")
    writer = MDSWriter(columns={"x": "int"}, out=(str(tmp_path / "local"), remote.as_uri()), size_limit=300, retry=1)
    with pytest.raises((StreamingError, OSError)):
        fill_and_finish(writer)
    assert remote.read_text() == "a file, where a folder is needed"
    assert "index.json" not in names(tmp_path / "local")
    assert "shard.00000.mds" in names(tmp_path / "local")


def test_the_writer_waits_for_uploads_that_fall_behind(tmp_path: Path) -> None:
    """No more than two files a thread wait on the disk."""
    uploader = Uploader((tmp_path / "remote").as_uri(), max_workers=1, attempts=1, progress_bar=False)
    source = tmp_path / "source"
    source.write_bytes(b"shard")
    gate = threading.Event()
    for at in range(2):
        uploader.put(f"shard.{at}", source, lambda _: gate.wait(30) and None)
    assert not uploader._room.acquire(blocking=False)
    gate.set()
    uploader.put("shard.2", source, lambda _: None)
    uploader.finish()
    uploader.close()
    assert names(tmp_path / "remote") == ["shard.0", "shard.1", "shard.2"]


def test_the_folder_beside_a_remote_is_kept(tmp_path: Path) -> None:
    """`remote=` says where a copy goes: what is in `out` stays, unless the writer is told otherwise."""
    remote = tmp_path / "remote"
    with MDSWriter(columns={"x": "int"}, out=tmp_path / "local", remote=remote.as_uri(), size_limit=300) as writer:
        fill(writer)
    assert names(tmp_path / "local") == names(remote) != []


def test_a_bucket_that_is_not_there(moto: StorageServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer is not even made, and leaves nothing."""
    for name, value in moto.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(BucketMissingError, match="s3://not-there/x"):
        MDSWriter(columns={"x": "int"}, out="s3://not-there/x")
    with pytest.raises(BucketMissingError):
        MDSWriter(columns={"x": "int"}, out=tmp_path / "local", remote="s3://not-there/x")
    assert names(tmp_path) == []
