"""What every remote promises, checked on each of them."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from streaming.errors import DatasetError, ObjectChangedError, ObjectMissingError, RemoteError, UnsupportedSourceError

if TYPE_CHECKING:
    from pathlib import Path

    from tests.remote.conftest import Store

DATA = random.Random(1).randbytes(3_000_001)


def read_all(store: Store, key: str, start: int = 0, stop: int | None = None, piece: int = 1 << 20) -> bytes:
    """A range through one reader and one reused buffer."""
    got, buffer = bytearray(), memoryview(bytearray(piece))
    with store.remote.open_range(key, start, stop) as reader:
        while count := reader.readinto(buffer):
            got += buffer[:count]
        assert reader.readinto(buffer) == 0, "the end stays the end"
    return bytes(got)


@pytest.mark.parametrize(
    ("start", "stop"), [(0, None), (0, 1), (1, 2), (4096, 8192), (2_999_999, 3_000_001), (5, None), (7, 7)]
)
def test_ranges(store: Store, start: int, stop: int | None) -> None:
    """A range gives exactly its bytes."""
    store.put("shard.00000.mds", DATA)
    assert read_all(store, "shard.00000.mds", start, stop) == DATA[start:stop]


@pytest.mark.parametrize("key", ["a/b/c.mds", "with space+plus", "ünï/çøde", "per%20cent%", "a=b&c;d,e@f$g!(h)'*~"])
def test_keys(store: Store, key: str) -> None:
    """Keys of any spelling are found, and come back from a listing as they are."""
    store.put(key, b"here")
    assert store.remote.read(key)[0] == b"here"
    if store.lists:
        assert [found.key for found in store.remote.list()] == [key]


def test_empty_object(store: Store) -> None:
    """An empty object is empty, not missing."""
    store.put("empty", b"")
    data, info = store.remote.read("empty")
    assert (data, info.size) == (b"", 0)
    assert read_all(store, "empty") == b""


def test_info_agrees(store: Store) -> None:
    """stat, read and a reader tell the same size and version."""
    store.put("x", DATA[:5000])
    info = store.remote.stat("x")
    _, seen = store.remote.read("x", start=10, stop=20)
    assert (info.size, info.etag) == (seen.size, seen.etag) == (5000, info.etag)
    assert info.etag
    assert info.mtime_ns > 0


def test_get_range_into_a_buffer(store: Store) -> None:
    """get_range fills the caller's memory and nothing beside it."""
    store.put("x", DATA)
    memory = bytearray(100)
    etag = store.remote.get_range("x", 1000, 1050, memoryview(memory)[20:])
    assert memory == bytes(20) + DATA[1000:1050] + bytes(30)
    assert etag == store.remote.stat("x").etag


def test_missing_object(store: Store) -> None:
    """A missing object is named, by reading and by stat."""
    store.put("there", b"1")
    for ask in (store.remote.read, store.remote.stat):
        with pytest.raises(ObjectMissingError, match="not-there"):
            ask("not-there")


def test_replaced_object(store: Store) -> None:
    """An object replaced by one of the same size is another object, whatever the server thinks of If-Match."""
    store.put("x", b"a" * 5000)
    etag = store.remote.stat("x").etag
    assert store.remote.read("x", etag=etag)[0] == b"a" * 5000
    store.delete("x")
    # nginx makes its ETag of the size and of whole seconds
    store.put("x", b"b" * (5001 if store.kind == "nginx" else 5000))
    with pytest.raises(ObjectChangedError, match="x"):
        store.remote.read("x", start=1, etag=etag)


def test_unexpected_size(store: Store) -> None:
    """A range that needs a larger object than there is, or one of another size, is refused rather than cut."""
    store.put("x", b"12345")
    with pytest.raises(ObjectChangedError, match="5 bytes"):
        store.remote.read("x", start=1, stop=9)
    with pytest.raises(ObjectChangedError, match=r"5 bytes|shorter"):
        store.remote.read("x", start=7, stop=9)
    with pytest.raises(ObjectChangedError, match="5 bytes"), store.remote.open_range("x", 0, 2, size=6) as reader:
        reader.readinto(memoryview(bytearray(2)))


def test_read_limit(store: Store) -> None:
    """A small read does not become a large one."""
    store.put("x", DATA[:100])
    assert store.remote.read("x", limit=100)[0] == DATA[:100]
    with pytest.raises(DatasetError, match="100 bytes"):
        store.remote.read("x", limit=99)


@pytest.mark.parametrize("key", ["", "/x", "../x", "a/../x", "a//b", "./x", "a\0b"])
def test_keys_that_leave_are_refused(store: Store, key: str) -> None:
    """A key cannot point outside the remote."""
    with pytest.raises(UnsupportedSourceError):
        store.remote.read(key)


def test_listing(store: Store) -> None:
    """Listings are complete, sorted by the key's bytes, relative, and can stop at folders."""
    if not store.lists:
        assert store.kind == "nginx"
        with pytest.raises(RemoteError):
            list(store.remote.list())
        return
    keys = ["a/1", "a/b/2", "a-x", "b", "a.c/z", "train/index.json", "trainer"]
    for key in keys:
        store.put(key, key.encode())
    assert [found.key for found in store.remote.list()] == sorted(keys)
    assert {found.key: found.size for found in store.remote.list()} == {key: len(key) for key in keys}
    assert [found.key for found in store.remote.list("train")] == ["train/index.json", "trainer"]
    assert [found.key for found in store.remote.list("a/")] == ["a/1", "a/b/2"]
    shallow = [found.key for found in store.remote.list(recursive=False)]
    assert shallow == ["a-x", "a.c/", "a/", "b", "train/", "trainer"]
    assert list(store.remote.list("nothing/")) == []


def test_listing_versions_agree(store: Store) -> None:
    """A listing names the version that a read will see."""
    if not store.lists:
        pytest.skip(f"{store.kind} does not list")
    store.put("x", DATA[:1000])
    (found,) = store.remote.list()
    assert found.etag == store.remote.stat("x").etag


def test_delete(store: Store) -> None:
    """A deleted object is gone, and nothing else is; deleting it again is no error."""
    if not store.lists:
        pytest.skip("a static server cannot delete")
    store.put("folder/x", b"1")
    store.put("y", b"2")
    store.remote.delete("folder/x")
    store.remote.delete("folder/x")
    assert [found.key for found in store.remote.list(recursive=False)] == ["y"]


def test_put(store: Store, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Bytes and files are stored whole, over what was there, and progress adds up to their size."""
    if store.kind == "nginx":
        pytest.skip("nginx is served read-only here")
    path: Path = tmp_path_factory.mktemp("put") / "source"
    path.write_bytes(DATA)
    pieces: list[int] = []
    store.remote.put("new/x", b"first")
    store.remote.put("new/x", path, progress=pieces.append)
    assert store.remote.read("new/x")[0] == DATA
    assert sum(pieces) == len(DATA)
    store.remote.put("new/y", b"12", progress=pieces.append)
    assert sum(pieces) == len(DATA) + 2


def test_many_threads(store: Store) -> None:
    """One remote serves many threads at once, each with its own bytes."""
    store.put("x", DATA)
    spans = [(start, start + 40_000) for start in range(0, 2_900_000, 90_000)]
    with ThreadPoolExecutor(16) as pool:
        parts = list(pool.map(lambda span: store.remote.read("x", start=span[0], stop=span[1])[0], spans))
    assert parts == [DATA[start:stop] for start, stop in spans]


def test_counters(store: Store) -> None:
    """What was asked and received is counted."""
    store.put("x", DATA)
    store.remote.read("x", start=100, stop=1100)
    counted = store.remote.counters.snapshot()
    assert counted == {"requests": 1, "bytes": 1000, "errors": 0, "retries": 0}


def test_closed_and_cancelled(store: Store) -> None:
    """A cancelled reader raises instead of giving bytes; closing twice is harmless."""
    store.put("x", DATA)
    reader = store.remote.open_range("x")
    buffer = memoryview(bytearray(100))
    assert reader.readinto(buffer) > 0
    thread = threading.Thread(target=reader.cancel)
    thread.start()
    thread.join()
    with pytest.raises(RemoteError, match="cancelled"):
        reader.readinto(buffer)
    reader.close()
    reader.close()


def test_local_path(store: Store) -> None:
    """Only a directory hands out its files."""
    store.put("x", b"1")
    path = store.remote.local_path("x")
    assert (path is not None) == (store.kind in ("local", "file"))
    assert path is None or path.read_bytes() == b"1"
