"""`remote=` and `local=`: through an engine that is started on demand and shared."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from streaming import LocalDataset, MDSWriter, Stream, StreamingDataLoader, StreamingDataset
from streaming.errors import (
    CacheLimitError,
    EngineRefusedError,
    FolderReusedError,
    ObjectChangedError,
    SourceMissingError,
)
from streaming.order import World
from tests.mount.host import until

from .samples import flat, ids, write

if TYPE_CHECKING:
    from tests.servers import StorageServer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def store(rclone: StorageServer, monkeypatch: pytest.MonkeyPatch) -> StorageServer:
    """A server that the environment points to."""
    for name, value in rclone.variables.items():
        monkeypatch.setenv(name, value)
    return rclone


def put(store: StorageServer, folder: str, name: str) -> str:
    store.put_tree(name, Path(folder))
    return store.url(name)


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_epochs(store: StorageServer, tmp_path: Path, cache: Path, compression: str | None) -> None:
    """The same order and samples as from the folder itself; complete shards stand in `local` under their names."""
    folder = write(tmp_path / "a", [50, 30], compression=compression, hashes=["sha1"])
    url = put(store, folder, f"{tmp_path.name}-{compression}")
    options: dict[str, Any] = {"batch_size": 4, "shuffle": True}
    here = StreamingDataset(local=folder, **options)
    there = StreamingDataset(remote=url, local=str(cache), validate_hash="sha1", **options)
    assert ids(there) == ids(here)
    assert ids(there) == ids(here)
    assert there.cache_usage > 0
    assert [there[number] for number in (0, 79)] == [here[number] for number in (0, 79)]
    until(lambda: {path.name for path in cache.glob("*.mds")} == {"shard.00000.mds", "shard.00001.mds"})
    del there
    assert [sample["id"] for sample in LocalDataset(str(cache))[:]] == list(range(80))


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers(store: StorageServer, tmp_path: Path, cache: Path, context: str) -> None:
    """Two workers, forked after use or spawned, read through connections of their own."""
    folder = write(tmp_path / "a", [50, 30])
    url = put(store, folder, f"{tmp_path.name}-{context}")
    found = StreamingDataset(remote=url, local=str(cache), batch_size=4, shuffle=True)
    assert found[7]["id"] == 7
    loader = StreamingDataLoader(
        found, batch_size=4, num_workers=2, worker_init_fn=print, multiprocessing_context=context
    )
    expected = flat(StreamingDataLoader(StreamingDataset(local=folder, batch_size=4, shuffle=True), batch_size=4))
    assert flat(loader) == expected


def test_split_and_several_processes(store: StorageServer, tmp_path: Path, cache: Path) -> None:
    """Four processes that start at once share one engine; the split is a folder on both sides."""
    write(tmp_path / "a" / "train", [50, 30])
    url = put(store, str(tmp_path / "a"), tmp_path.name)
    statement = (
        "import sys\n"
        "from streaming import StreamingDataset\n"
        "made = StreamingDataset(remote=sys.argv[1], local=sys.argv[2], split='train', batch_size=4, shuffle=True)\n"
        "print(sum(sample['id'] for sample in made))\n"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", statement, url, str(cache)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    assert [child.communicate()[0] for child in children] == [f"{sum(range(80))}\n"] * 4


def test_cache_limit(store: StorageServer, tmp_path: Path, cache: Path) -> None:
    """A third of the data fits; every sample comes, and no more is kept."""
    rng = np.random.default_rng(1)
    contents = [rng.bytes(100_000) for _ in range(100)]
    with MDSWriter(columns={"id": "int", "x": "bytes"}, out=str(tmp_path / "a"), size_limit="1mb") as writer:
        for number, content in enumerate(contents):
            writer.write({"id": number, "x": content})
    url = put(store, str(tmp_path / "a"), tmp_path.name)
    found = StreamingDataset(remote=url, local=str(cache), cache_limit="4mb", batch_size=2, shuffle=True)
    seen = list(found)
    assert sorted(ids(seen)) == list(range(100))
    assert all(sample["x"] == contents[sample["id"]] for sample in seen)
    assert found.cache_usage <= 4 << 20
    with pytest.raises(EngineRefusedError, match="--cache-limit"):
        StreamingDataset(remote=url, local=str(cache), cache_limit="8mb")


def test_refusals(store: StorageServer, tmp_path: Path, cache: Path) -> None:
    """A limit that is too low is a ValueError; a remote without a dataset is a FileNotFoundError."""
    url = put(store, write(tmp_path / "a"), tmp_path.name)
    with pytest.raises(CacheLimitError) as limit:
        StreamingDataset(remote=url, local=str(cache), cache_limit="1kb")
    assert isinstance(limit.value, ValueError)
    with pytest.raises(SourceMissingError) as missing:
        StreamingDataset(remote=store.url("nothing-here"), local=str(cache))
    assert isinstance(missing.value, FileNotFoundError)


@pytest.mark.parametrize("hashes", [None, "sha1"])
def test_shards_one_by_one(store: StorageServer, tmp_path: Path, cache: Path, hashes: str | None) -> None:
    """A stream's shards are known before any is there; each is fetched when that is asked for, and is a file then."""
    folder = write(tmp_path / "a" / "train", [50, 30], compression="zstd", hashes=hashes)
    url = put(store, folder, f"{tmp_path.name}/train")
    stream = Stream(remote=url.rpartition("/")[0], local=str(cache), split="train")
    shards = stream.get_shards(World(1, 1, 1, 0), False)
    assert stream.get_index_size() == (cache / "train" / "index.json").stat().st_size
    here = np.full(2, -1, np.int64)
    stream.set_up_local(shards, here)
    assert here.tolist() == [0, 0]
    assert stream.prepare_shard(shards[1]) == shards[1].get_raw_size()
    assert stream.prepare_shard(shards[1]) == 0
    stream.set_up_local(shards, here)
    assert here.tolist() == [0, shards[1].get_raw_size()]
    assert ids(shards[1]) == list(range(50, 80))
    dataset = StreamingDataset(streams=[stream], batch_size=1)
    dataset.prepare_shard(0)
    assert dataset.shards[0].is_here()
    until(lambda: {path.name for path in cache.glob("train/*.mds")} == {"shard.00000.mds", "shard.00001.mds"})
    assert ids(dataset.shards[0]) == list(range(50))


def test_a_shard_that_is_not_what_the_index_says_gets_no_name(
    store: StorageServer, tmp_path: Path, cache: Path
) -> None:
    """Nobody has asked for its hash to be checked, and it is read as it comes; but it leaves when it was hashed."""
    folder = Path(write(tmp_path / "a", [50, 30], hashes="sha1"))
    shard = folder / "shard.00000.mds"
    shard.write_bytes(shard.read_bytes().replace(b"sample 7", b"sample 8", 1))
    dataset = StreamingDataset(remote=put(store, str(folder), tmp_path.name), local=str(cache), batch_size=1)
    for number in range(2):
        dataset.prepare_shard(number)
    until(lambda: {path.name for path in cache.glob("*.mds")} == {"shard.00001.mds"})
    folder_of_engine: Any = dataset._mix.parts[0].folder
    # a reader that still waits has it fetched once more: so it may be here again
    until(lambda: folder_of_engine.status()["evictions"]["count"] >= 1)
    assert dataset[7]["text"] == "sample 8"


@pytest.mark.parametrize("split", [None, "train"])
def test_a_folder_is_the_cache_of_one_remote(tmp_path: Path, cache: Path, split: str | None) -> None:
    """Another remote is refused, while the first one is in use and after that; nothing of one is given as the other."""
    first, second = (tmp_path / name for name in "ab")
    write(first / (split or ""), [50])
    write(second / (split or ""), [30], 100)
    options: dict[str, Any] = {"local": str(cache), "split": split, "batch_size": 4}

    def refused() -> None:
        with pytest.raises(FolderReusedError, match=r"Reused local directory: .* vs .*Provide a different one\."):
            StreamingDataset(remote=str(second), **options)

    found = StreamingDataset(remote=str(first), **options)
    refused()
    assert ids(found) == list(range(50))
    del found
    refused()
    assert ids(StreamingDataset(remote=str(first), **options)) == list(range(50))
    assert issubclass(FolderReusedError, ValueError)


def test_another_version_of_the_remote_is_not_mixed_with_what_is_cached(tmp_path: Path, cache: Path) -> None:
    """An index that is stored anew without a change is the same dataset; one that has changed is an error."""
    folder = write(tmp_path / "a", [50])
    options: dict[str, Any] = {"remote": folder, "local": str(cache), "batch_size": 4}
    assert ids(StreamingDataset(**options)) == list(range(50))
    index = Path(folder, "index.json")
    index.write_bytes(index.read_bytes())
    assert ids(StreamingDataset(**options)) == list(range(50))
    shutil.rmtree(folder)
    write(tmp_path / "a", [30], 100)
    with pytest.raises(ObjectChangedError, match="remove that folder, or give another one"):
        StreamingDataset(**options)


def test_local_remote_is_never_touched(tmp_path: Path, cache: Path) -> None:
    """A path as remote is read in place, under a tiny limit too; so is `local` equal to `remote`."""
    folder = write(tmp_path / "a", [50, 30])
    before = sorted(path.name for path in Path(folder).iterdir())
    streams = [
        Stream(remote=folder, local=str(cache)),
        Stream(local=write(tmp_path / "b", [20], 80)),
        Stream(remote=write(tmp_path / "c", [20], 100), local=str(tmp_path / "c")),
    ]
    found = StreamingDataset(streams=streams, cache_limit="3mb", batch_size=4)
    assert sorted(ids(found)) == list(range(120))
    assert sorted(path.name for path in Path(folder).iterdir()) == before
