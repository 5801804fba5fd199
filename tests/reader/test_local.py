"""LocalDataset on a plain folder."""

from __future__ import annotations

import os
import pickle
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from streaming import LocalDataset, MDSWriter
from streaming.errors import IndexFormatError, ObjectMissingError, ShardCorruptError, ShardFormatError

if TYPE_CHECKING:
    from pathlib import Path

COLUMNS = {"id": "int", "name": "str", "data": "bytes", "row": "ndarray:float32:3"}


def sample(number: int) -> dict[str, Any]:
    data = np.random.default_rng(number).bytes(number % 700)
    return {"id": number, "name": f"sample {number} ž", "data": data, "row": np.full(3, number, np.float32)}


def write(folder: Path, count: int = 60, **options: Any) -> Path:
    with MDSWriter(columns=COLUMNS, out=str(folder), size_limit="2kb", **options) as writer:
        for number in range(count):
            writer.write(sample(number))
    return folder


def same(got: dict[str, Any], number: int) -> bool:
    want = sample(number)
    return bool(
        got["id"] == want["id"]
        and got["name"] == want["name"]
        and bytes(got["data"]) == want["data"]
        and np.array_equal(got["row"], want["row"])
    )


@pytest.mark.parametrize("compression", [None, "zstd", "zstd:7", "gz", "bz2", "br", "snappy"])
@pytest.mark.parametrize("zero_copy", [False, True])
def test_every_sample(tmp_path: Path, compression: str | None, zero_copy: bool) -> None:
    """Values are what was written, whatever the compression, as copies and as views."""
    dataset = LocalDataset(str(write(tmp_path / "out", compression=compression)), zero_copy=zero_copy)
    assert len(dataset) == dataset.size == 60
    assert all(same(dataset[number], number) for number in range(60))


def test_values_are_copies_by_default(tmp_path: Path) -> None:
    """Without zero_copy a bytes column is bytes, with it a memoryview of the shard."""
    folder = str(write(tmp_path / "out"))
    assert type(LocalDataset(folder)[5]["data"]) is bytes
    assert type(LocalDataset(folder, zero_copy=True)[5]["data"]) is memoryview


def test_kinds_of_index(tmp_path: Path) -> None:
    """Integers of both kinds, negative ones, slices, lists, nested lists and arrays."""
    dataset = LocalDataset(write(tmp_path / "out"))

    def ids(items: Any) -> Any:
        return [ids(item) for item in items] if isinstance(items, list) else items["id"]

    assert ids(dataset[np.int64(7)]) == 7
    assert ids(dataset[-1]) == 59
    assert ids(dataset[50:]) == list(range(50, 60))
    assert ids(dataset[10:0:-3]) == [10, 7, 4, 1]
    assert ids(dataset[[3, [4, -1]]]) == [3, [4, 59]]
    assert ids(dataset[np.array([[1, 2], [3, 4]])]) == [[1, 2], [3, 4]]


@pytest.mark.parametrize("at", [60, -61])
def test_out_of_range(tmp_path: Path, at: int) -> None:
    """An integer outside the dataset is an IndexError that says so."""
    dataset = LocalDataset(write(tmp_path / "out"))
    with pytest.raises(IndexError, match="out of range for 60 samples"):
        dataset[at]


def test_no_index_type(tmp_path: Path) -> None:
    """Anything that is no index is a ValueError naming its type."""
    with pytest.raises(ValueError, match="Unsupported argument type"):
        LocalDataset(write(tmp_path / "out"))["x"]


def test_split(tmp_path: Path) -> None:
    """`split` names a sub-folder."""
    write(tmp_path / "out" / "train")
    assert len(LocalDataset(str(tmp_path / "out"), "train")) == 60


def test_no_dataset(tmp_path: Path) -> None:
    """A folder without index.json is an error that is a FileNotFoundError too."""
    with pytest.raises(ObjectMissingError, match=r"index\.json does not exist") as caught:
        LocalDataset(str(tmp_path))
    assert isinstance(caught.value, FileNotFoundError)


def test_missing_shard(tmp_path: Path) -> None:
    """A shard that is not there is named when it is read, and only then."""
    dataset = LocalDataset(write(tmp_path / "out"))
    (tmp_path / "out" / "shard.00001.mds").unlink()
    assert same(dataset[0], 0)
    with pytest.raises(ObjectMissingError, match=r"shard\.00001\.mds"):
        dataset[:]


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_truncated_shard(tmp_path: Path, keep: int) -> None:
    """A shard cut anywhere is refused: never a short value."""
    path = write(tmp_path / "out") / "shard.00000.mds"
    os.truncate(path, keep if keep >= 0 else path.stat().st_size - 1)
    with pytest.raises(ShardCorruptError, match=r"shard\.00000\.mds: expected \d+ bytes, got \d+"):
        LocalDataset(tmp_path / "out")[0]


def test_offsets_that_go_backwards(tmp_path: Path) -> None:
    """A shard whose offsets are wrong is refused, naming shard and sample."""
    path = write(tmp_path / "out") / "shard.00000.mds"
    data = bytearray(path.read_bytes())
    data[8:12] = (2**31).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(ShardFormatError, match=r"shard\.00000\.mds: sample 1: expected ascending"):
        LocalDataset(tmp_path / "out")[0]


def test_corrupt_compressed_shard(tmp_path: Path) -> None:
    """A damaged compressed shard is refused by name."""
    path = write(tmp_path / "out", compression="zstd") / "shard.00000.mds.zstd"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ShardCorruptError, match=r"shard\.00000\.mds\.zstd"):
        LocalDataset(tmp_path / "out")[0]


def test_index_of_another_version(tmp_path: Path) -> None:
    """Version 3 is refused with its number."""
    (tmp_path / "index.json").write_text('{"shards": [], "version": 3}')
    with pytest.raises(IndexFormatError, match="3"):
        LocalDataset(tmp_path)


def test_pickle(tmp_path: Path) -> None:
    """A pickled dataset opens its files anew."""
    dataset = pickle.loads(pickle.dumps(LocalDataset(write(tmp_path / "out"))))
    assert same(dataset[33], 33)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_dataloader_workers(tmp_path: Path, context: str) -> None:
    """Works as a map-style dataset under torch's workers, forked after use and spawned."""
    dataset = LocalDataset(write(tmp_path / "out"))
    assert same(dataset[1], 1)
    loader: Any = DataLoader(dataset, batch_size=8, num_workers=2, collate_fn=list, multiprocessing_context=context)  # type: ignore[arg-type]
    assert [item["id"] for batch in loader for item in batch] == list(range(60))


def test_override_of_get_item(tmp_path: Path) -> None:
    """A subclass transforms samples in `get_item`, whatever the kind of index."""

    class Doubled(LocalDataset):
        def get_item(self, sample_id: int) -> Any:
            return 2 * super().get_item(sample_id)["id"]

    dataset = Doubled(write(tmp_path / "out"))
    assert dataset[5] == 10
    assert dataset[[1, -1]] == [2, 118]


def test_load_batch(tmp_path: Path) -> None:
    """Many samples at once, copied and as views, the same as one by one."""
    with MDSWriter(columns={"x": "bytes", "i": "int"}, out=str(tmp_path / "a"), size_limit=500) as writer:
        for number in range(60):
            writer.write({"x": b"x" * number, "i": number})
    dataset = LocalDataset(tmp_path / "a")
    ids = [7, 59, 0, 7]
    values, offsets = dataset.load_batch(ids)["x"]
    assert [bytes(values[a:b]) for a, b in pairwise(offsets)] == [b"x" * each for each in ids]
    batch = dataset.load_batch(ids, ["i", "x"], views=True)
    assert list(batch) == ["i", "x"]
    assert batch["i"].tolist() == ids
    assert [bytes(value) for value in batch["x"]] == [b"x" * each for each in ids]
    with pytest.raises(IndexError):
        dataset.load_batch([60], views=True)
