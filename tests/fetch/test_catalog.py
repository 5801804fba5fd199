"""What a source consists of: real indexer children over folders and servers."""

from __future__ import annotations

import json
import os
import resource
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from mdsfs.engine.sources.catalog import IndexedSource, index_source
from mdsfs.engine.store.directory import CacheStore
from mdsfs.engine.store.folder import growth_bytes
from streaming.errors import BucketMissingError, CacheLimitError, EngineError, IndexFormatError, SourceMissingError
from streaming.remote import RemoteOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import StorageServer

pytestmark = pytest.mark.trio

OPTIONS = RemoteOptions(attempts=2)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CacheStore]:
    with CacheStore.open(tmp_path / "cache") as opened:
        yield opened


def shard(name: str, size: int = 300, zipped: int | None = None) -> dict[str, Any]:
    """One shard's entry of an index."""
    return {
        "column_encodings": ["bytes"],
        "column_names": ["b"],
        "column_sizes": [None],
        "compression": None if zipped is None else "zstd",
        "format": "mds",
        "hashes": [],
        "raw_data": {"basename": name, "bytes": size, "hashes": {}},
        "samples": 1,
        "size_limit": None,
        "version": 2,
        "zip_data": None if zipped is None else {"basename": f"{name}.zstd", "bytes": zipped, "hashes": {}},
    }


def index(*shards: dict[str, Any]) -> bytes:
    return json.dumps({"shards": list(shards), "version": 2}).encode()


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


async def find(store: CacheStore, source: Path | str, *, listing: bool = True, **more: Any) -> IndexedSource:
    return await index_source(store, str(source), OPTIONS, {"endpoint": None}, listing=listing, **more)


def names(store: CacheStore, found: IndexedSource) -> dict[tuple[str, str], list[str]]:
    """Files as shown, by kind and prefix."""
    return {(info.kind, info.prefix): sorted(store.folder(info.id).tables.names()) for info in found.datasets}


async def test_one_dataset_without_listing(store: CacheStore, source: Path) -> None:
    """The index alone tells everything; what else lies there is neither looked at nor shown."""
    write(source, {"index.json": index(shard("a.mds", 700, 5), shard("sub/b.mds", 900, 4)), "readme": b"x"})
    found = await find(store, source, listing=False)
    assert names(store, found) == {("mds", ""): ["a.mds", "sub/b.mds"]}
    info = found.datasets[0]
    folder = store.folder(info.id)
    assert (info.files, info.shown_size, info.stored_size, info.url) == (2, 1600, 9, str(source))
    assert info.mtime_ns == (source / "index.json").stat().st_mtime_ns
    assert [folder.tables.key(n) for n in range(2)] == ["a.mds.zstd", "sub/b.mds.zstd"]
    assert folder.original_path.read_bytes() == (source / "index.json").read_bytes()
    assert json.loads(folder.index_path.read_bytes())["shards"][0]["zip_data"] is None
    assert found.warnings == ()


async def test_nested_datasets_and_plain_objects(store: CacheStore, source: Path) -> None:
    """Every index.json is a dataset; what none names is shown as it is; stored forms and indexes are not."""
    write(
        source,
        {
            "train/index.json": index(shard("s.mds", 700, 5)),
            "train/s.mds.zstd": b"zzzzz",
            "val/index.json": index(shard("s.mds", 300)),
            "val/s.mds": b"abc",
            "readme.md": b"hello",
            "train/notes.txt": b"n",
        },
    )
    found = await find(store, source)
    assert names(store, found) == {
        ("mds", "train"): ["s.mds"],
        ("mds", "val"): ["s.mds"],
        ("objects", ""): ["readme.md", "train/notes.txt"],
    }
    assert found.datasets[-1].kind == "objects"
    assert found.warnings == ()


async def test_shards_in_folders_belong_to_the_index_that_names_them(store: CacheStore, source: Path) -> None:
    """A merged index names shards of sub-folders: none of them is a plain object."""
    write(source, {"index.json": index(shard("a/s.mds"), shard("b/s.mds")), "a/s.mds": b"0" * 10, "b/s.mds": b"1" * 10})
    assert names(store, await find(store, source)) == {("mds", ""): ["a/s.mds", "b/s.mds"]}


async def test_a_raw_view_wins_over_an_object_of_its_name(store: CacheStore, source: Path) -> None:
    """A decompressed copy beside its compressed shard is left out, with a warning."""
    write(source, {"index.json": index(shard("s.mds", 700, 5)), "s.mds.zstd": b"zzzzz", "s.mds": b"other"})
    found = await find(store, source)
    assert names(store, found) == {("mds", ""): ["s.mds"]}
    assert "decompressed shard" in found.warnings[0]
    assert "'s.mds'" in found.warnings[0]


async def test_some_other_index_json_is_an_object(store: CacheStore, source: Path) -> None:
    """A nested index.json that is no dataset's is shown as it is, and the rest goes on."""
    write(source, {"index.json": index(shard("s.mds")), "s.mds": b"0" * 10, "web/index.json": b'{"pages": []}'})
    found = await find(store, source)
    assert names(store, found) == {("mds", ""): ["s.mds"], ("objects", ""): ["web/index.json"]}
    assert "web/index.json is shown as it is" in found.warnings[0]


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "index.json"),
        (b"{", "index.json"),
        (b"\xff\xfe", "UTF-8"),
        (b'{"shards": [], "version": 3}', "version"),
        (index(shard("../../etc/passwd")), "basename"),
        (index(shard("a"), shard("a")), "a"),
    ],
)
async def test_a_hostile_root_index_is_a_named_error(store: CacheStore, source: Path, data: bytes, match: str) -> None:
    """One line that names the source; nothing is left in the cache."""
    write(source, {"index.json": data})
    with pytest.raises(IndexFormatError, match=match) as caught:
        await find(store, source)
    assert str(source) in str(caught.value)
    assert sorted(os.listdir(store.root)) == ["CACHEDIR.TAG", "VERSION"]


async def test_nothing_under_the_prefix(store: CacheStore, source: Path) -> None:
    """With and without listing it is said that nothing is there; folders that could be meant are named."""
    with pytest.raises(SourceMissingError, match="check"):
        await find(store, source)
    with pytest.raises(SourceMissingError, match="check"):
        await find(store, source, listing=False)
    write(source, {"train/index.json": index()})
    with pytest.raises(SourceMissingError, match=r"train/.*may be the dataset"):
        await find(store, source, listing=False)


async def test_an_unchanged_index_is_not_read_again(store: CacheStore, source: Path) -> None:
    """The second open finds the first's folder; a changed index gets one of its own."""
    write(source, {"index.json": index(shard("s.mds")), "s.mds": b"0" * 10, "x": b""})
    first = await find(store, source)

    async def no_room(size: int) -> None:
        raise AssertionError(f"{size} bytes to write")

    again = await find(store, source, make_room=no_room, listing=False)
    assert again.datasets == first.datasets[:1]
    assert names(store, await find(store, source)) == {("mds", ""): ["s.mds"], ("objects", ""): ["x"]}
    write(source, {"index.json": index(shard("t.mds"))})
    other = await find(store, source, listing=False)
    assert other.datasets[0].id != first.datasets[0].id


async def test_a_dataset_found_below_another_source_is_known_by_itself(store: CacheStore, source: Path) -> None:
    """What a mount shows in a folder is opened by a reader of that folder without a byte being written."""
    write(source, {"train/index.json": index(shard("s.mds")), "train/s.mds": b"0" * 10})
    first = await find(store, source)

    async def no_room(size: int) -> None:
        raise AssertionError(f"{size} bytes to write")

    again = await find(store, source / "train", make_room=no_room, listing=False)
    assert [info.id for info in again.datasets] == [info.id for info in first.datasets if info.prefix == "train"]
    assert again.datasets[0].prefix == ""


async def test_room_is_made_before_anything_is_written(store: CacheStore, source: Path) -> None:
    """Whoever keeps the limit hears the size first, and may refuse."""
    write(source, {"index.json": index(shard("s.mds"))})
    sizes = []

    async def refuse(size: int) -> None:
        sizes.append(size)
        raise CacheLimitError("too small")

    with pytest.raises(CacheLimitError):
        await find(store, source, make_room=refuse)
    assert sorted(os.listdir(store.root)) == ["CACHEDIR.TAG", "VERSION"]

    async def agree(size: int) -> None:
        sizes.append(size)

    (info,) = (await find(store, source, make_room=agree)).datasets
    folder = store.root / info.id
    written = sum((folder / name).stat().st_size for name in ("tables", "index.json", "index.orig"))
    assert sizes == [written + growth_bytes(1)] * 2


def kill_indexer() -> None:
    """The one child of ours."""
    killed = 0
    for children in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # threads come and go
            for child in children.read_text().split():
                if b"mdsfs.engine.sources.indexer" in Path("/proc", child, "cmdline").read_bytes():
                    os.kill(int(child), signal.SIGKILL)
                    killed += 1
    assert killed == 1


@pytest.mark.parametrize("times", [2, 3])
async def test_an_indexer_that_was_killed_is_followed_by_another(store: CacheStore, source: Path, times: int) -> None:
    """Twice: who asked hears nothing of it. One that is killed each time is an error."""
    write(source, {"index.json": index(shard("a.mds"))})
    left = times

    async def kill(_: int) -> None:
        nonlocal left
        left -= 1
        if left >= 0:
            kill_indexer()

    if times == 2:
        assert names(store, await find(store, source, make_room=kill)) == {("mds", ""): ["a.mds"]}
    else:
        with pytest.raises(EngineError, match="without a word"):
            await find(store, source, make_room=kill)
    assert left == (-1 if times == 2 else 0)
    assert not list(store.root.glob(".staging-*"))


async def test_published_datasets_have_their_index_at_the_top(store: CacheStore, source: Path, tmp_path: Path) -> None:
    """The folder of a published dataset begins with the index as shown."""
    write(source, {"index.json": index(shard("s.mds", 700, 5))})
    (info,) = (await find(store, source, listing=False, publish=tmp_path / "local")).datasets
    assert sorted(os.listdir(tmp_path / "local")) == [".partial", "index.json"]
    assert store.folder(info.id, publish=tmp_path / "local").is_published


async def test_cancelling_ends_the_child(store: CacheStore, source: Path) -> None:
    """An open that nobody waits for any more leaves neither process nor folder."""
    write(source, {"index.json": index(shard("s.mds"))})
    with trio.CancelScope() as scope:

        async def stop(_: int) -> None:
            scope.cancel()
            await trio.lowlevel.checkpoint()

        await find(store, source, make_room=stop)
    assert scope.cancelled_caught
    assert sorted(os.listdir(store.root)) == ["CACHEDIR.TAG", "VERSION"]


async def test_a_missing_bucket_is_told_apart(store: CacheStore, moto: StorageServer, monkeypatch: Any) -> None:
    """Over S3 a missing bucket, an empty prefix and a dataset are three answers."""
    for name, value in moto.variables.items():
        monkeypatch.setenv(name, value)
    options = RemoteOptions.from_environment(attempts=2)
    moto.put("found/index.json", index(shard("s.mds")))
    with pytest.raises(BucketMissingError):
        await index_source(store, "s3://no-such-bucket/x", options, {}, listing=True)
    with pytest.raises(SourceMissingError) as caught:
        await index_source(store, moto.url("nothing-here"), options, {}, listing=True)
    assert not isinstance(caught.value, BucketMissingError)
    found = await index_source(store, moto.url("found"), options, {}, listing=True)
    assert [info.kind for info in found.datasets] == ["mds"]


async def test_a_hundred_thousand_shards(store: CacheStore, source: Path) -> None:
    """Tables of a large index are there within seconds, and this process never holds the index."""
    data = index(*(shard(f"shard.{n:05}.mds", 67_000_000, 30_000_000) for n in range(100_000)))
    write(source, {"index.json": data})
    del data
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    (info,) = (await find(store, source, listing=False)).datasets
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert len(store.folder(info.id).tables.files) == info.files == 100_000
    # of CPU: four where nothing else runs, and no number of neighbours makes it ten times that
    assert seconds < 40
