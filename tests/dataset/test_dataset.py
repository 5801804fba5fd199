"""StreamingDataset by itself: order, state, indexing, arguments."""

from __future__ import annotations

import json
import pickle
import warnings
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from streaming import Stream, StreamingDataset
from streaming.errors import IndexFormatError, ObjectMissingError, ShardCorruptError

from .samples import ids, write

if TYPE_CHECKING:
    from pathlib import Path


def dataset(folder: str, **options: Any) -> StreamingDataset:
    return StreamingDataset(local=folder, **{"batch_size": 2, "num_canonical_nodes": 1} | options)


# ---- order -----------------------------------------------------------------------------------------------------------


def test_unshuffled_is_sequential(tmp_path: Path) -> None:
    """With one canonical node and no shuffle the order is that of the samples."""
    assert ids(dataset(write(tmp_path / "a"))) == list(range(8))


def test_golden_epochs(tmp_path: Path) -> None:
    """The shuffled epochs that mosaicml-streaming 0.13.0 gives for shards of 5 and 3."""
    found = dataset(write(tmp_path / "a"), shuffle=True)
    assert ids(found) == [2, 1, 6, 5, 4, 7, 3, 0]
    assert ids(found) == [7, 4, 3, 2, 1, 0, 5, 6]


@pytest.mark.parametrize(("rank", "expected"), [(0, [2, 6, 4, 3]), (1, [1, 5, 7, 0])])
def test_golden_ranks(tmp_path: Path, rank: int, expected: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks of one node, by the environment and by arguments."""
    folder = write(tmp_path / "a")
    by_arguments = dataset(folder, shuffle=True, rank=rank, world_size=2, local_world_size=2)
    assert len(by_arguments) == 4
    assert ids(by_arguments) == expected
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert ids(dataset(folder, shuffle=True)) == expected


def test_replication(tmp_path: Path) -> None:
    """Ranks in a group see the same; the groups share the epoch."""
    folder = write(tmp_path / "a")
    seen = [
        ids(dataset(folder, rank=rank, world_size=4, local_world_size=4, replication=2, batch_size=1))
        for rank in range(4)
    ]
    assert seen[0] == seen[1]
    assert seen[2] == seen[3]
    assert sorted(seen[0] + seen[2]) == list(range(8))


@pytest.mark.parametrize(
    ("batching", "expected"),
    [
        ("random", [[11, 8], [4, 6], [8, 9], [10, 5], [7, 3]]),
        ("per_stream", [[10, 9], [6, 4], [8, 11], [7, 3]]),
        ("stratified", [[6, 10], [4, 9], [7, 8], [3, 11], [5, 11]]),
        ("device_per_stream", [[10, 9], [6, 4], [8, 11], [7, 3]]),
    ],
)
def test_golden_batching(tmp_path: Path, batching: str, expected: list[list[int]]) -> None:
    """Two streams in the four ways of making batches."""
    streams = [
        Stream(local=write(tmp_path / "a"), proportion=0.5),
        Stream(local=write(tmp_path / "b", [4], 8), proportion=0.5),
    ]
    found = StreamingDataset(
        streams=streams,
        epoch_size=10,
        batch_size=2,
        shuffle=True,
        num_canonical_nodes=1,
        shuffle_block_size=16,
        batching_method=batching,
    )
    seen = ids(found)
    assert [seen[at : at + 2] for at in range(0, len(seen), 2)] == expected
    assert [stream.choose for stream in streams] == [5, 5]


# Printed in mosaicml-streaming's own documentation of stream weights.
WEIGHTED = [2, 3, 4, 5, 4, 5, 6, 7, 6, 7, 6, 7]


@pytest.mark.parametrize(
    ("weights", "options", "expected"),
    [
        ([{}] * 4, {}, list(range(8))),
        ([{"choose": 4}] * 4, {}, [0, 1, 0, 1, 2, 3, 2, 3, 4, 5, 4, 5, 6, 7, 6, 7]),
        ([{"choose": n} for n in (0, 2, 4, 6)], {}, WEIGHTED),
        ([{"repeat": n} for n in (0, 1, 2, 3)], {}, WEIGHTED),
        ([{"repeat": 0}, {"choose": 2}, {"repeat": 2}, {"choose": 6}], {}, WEIGHTED),
        ([{"proportion": n / 6} for n in (0, 1, 2, 3)], {"epoch_size": 12}, WEIGHTED),
        ([{"proportion": 1}] * 4, {}, list(range(8))),
    ],
)
def test_weights(tmp_path: Path, weights: list[dict[str, Any]], options: dict[str, Any], expected: list[int]) -> None:
    """Streams of two samples each, by proportion, repeat and choose."""
    streams = [
        Stream(local=write(tmp_path / str(number), [2], 2 * number), **weight) for number, weight in enumerate(weights)
    ]
    found = StreamingDataset(streams=streams, batch_size=1, num_canonical_nodes=1, **options)
    assert ids(found) == expected
    assert found.epoch_size == len(expected)


@pytest.mark.parametrize("canonical", [None, 4])
def test_canonical_nodes_resolve(tmp_path: Path, canonical: int | None) -> None:
    """None becomes the number of nodes, or 64 times that for the older algorithms, when iteration starts."""
    folder = write(tmp_path / "a", [40, 40])
    for algo, expected in (("py1e", canonical or 1), ("py1s", canonical or 64)):
        found = dataset(folder, num_canonical_nodes=canonical, shuffle=True, shuffle_algo=algo)
        assert sorted(set(ids(found))) == list(range(80))
        assert found.num_canonical_nodes == expected


# ---- state -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seen", [0, 2, 4, 6, 8])
def test_resume(tmp_path: Path, seen: int) -> None:
    """A new dataset with the state goes on with exactly what was left, and then with the next epoch."""
    folder = write(tmp_path / "a")
    first = dataset(folder, shuffle=True)
    epoch = ids(first)
    state = json.loads(json.dumps(first.state_dict(seen, True)))
    assert state.keys() == {
        "epoch",
        "sample_in_epoch",
        "num_canonical_nodes",
        "shuffle_seed",
        "initial_physical_nodes",
    }
    second = dataset(folder, shuffle=True, shuffle_seed=1, num_canonical_nodes=2)
    second.load_state_dict(state)
    assert ids(second) == epoch[seen:]
    assert ids(second) == ids(first)


def test_state_after_resuming_counts_on(tmp_path: Path) -> None:
    """Samples seen since a resumption add to those before it."""
    folder = write(tmp_path / "a")
    found = dataset(folder)
    found.load_state_dict(dataset(folder).state_dict(2, False) | {"epoch": 3, "sample_in_epoch": 2})
    assert found.state_dict(0, False)["epoch"] == 3
    iterator = iter(found)
    assert next(iterator)["id"] == 2
    assert found.state_dict(4, False)["sample_in_epoch"] == 6
    assert found.state_dict(4, True)["sample_in_epoch"] == 4
    assert found.next_epoch == 4


def test_a_stale_state_is_ignored(tmp_path: Path) -> None:
    """A state of an epoch that is over does not bring it back."""
    found = dataset(write(tmp_path / "a"))
    state = found.state_dict(0, True) | {"epoch": 0, "sample_in_epoch": 4}
    ids(found)
    ids(found)
    found.load_state_dict(state)
    assert ids(found) == list(range(8))
    assert found.next_epoch == 3


def test_break_and_start_again(tmp_path: Path) -> None:
    """An epoch that was left is over; the next one is whole."""
    found = dataset(write(tmp_path / "a"), shuffle=True)
    assert next(iter(found))["id"] == 2
    assert ids(found) == [7, 4, 3, 2, 1, 0, 5, 6]


def test_resume_on_more_nodes(tmp_path: Path) -> None:
    """With two canonical nodes, the rest of an epoch begun on one node is what two nodes see after it."""
    folder = write(tmp_path / "a")
    first = dataset(folder, shuffle=True, num_canonical_nodes=2)
    epoch = ids(first)
    state = first.state_dict(4, True)
    rest = []
    for rank in range(2):
        found = dataset(folder, batch_size=1, shuffle=True, rank=rank, world_size=2, local_world_size=1)
        found.load_state_dict(state)
        rest.append(ids(found))
    assert [each for pair in zip(*rest, strict=True) for each in pair] == epoch[4:]


# ---- indexing --------------------------------------------------------------------------------------------------------


def test_indexing(tmp_path: Path) -> None:
    """Integers, negative ones, slices, lists and arrays over several streams."""
    streams = [Stream(local=write(tmp_path / "a")), Stream(local=write(tmp_path / "b", [4], 8))]
    found = StreamingDataset(streams=streams)
    assert (len(found), found.size, found.num_samples) == (12, 12, 12)
    assert found[-1] == found[11] == found[np.int64(11)] == {"id": 11, "text": "sample 11"}
    assert ids(found[9:2:-3]) == [9, 6, 3]
    assert ids(found[[0, 8]]) == [0, 8]
    assert ids(found[np.array([5, 11])]) == [5, 11]
    with pytest.raises(IndexError):
        found[12]


def test_attributes(tmp_path: Path) -> None:
    """What is said about streams, shards and samples."""
    streams = [Stream(local=write(tmp_path / "a")), Stream(local=write(tmp_path / "b", [4], 8))]
    found = StreamingDataset(streams=streams)
    assert (found.num_streams, found.num_shards, found.epoch_size) == (2, 3, 12)
    assert found.samples_per_shard.tolist() == [5, 3, 4]
    assert found.sample_offset_per_shard.tolist() == [0, 5, 8]
    assert found.shards_per_stream.tolist() == [2, 1]
    assert found.shard_offset_per_stream.tolist() == [0, 2]
    assert found.samples_per_stream.tolist() == [8, 4]
    assert found.sample_offset_per_stream.tolist() == [0, 8]
    assert found.stream_per_shard.tolist() == [0, 0, 1]
    assert found.spanner[8] == (2, 0)
    assert [len(shard) for shard in found.shards] == [5, 3, 4]
    assert found.shards[1].column_names == ["id", "text"]
    with pytest.raises(AttributeError, match="nonsense"):
        found.nonsense  # noqa: B018


class Doubled(StreamingDataset):
    def get_item(self, sample_id: int, retry: int = 7) -> Any:
        return 2 * super().get_item(sample_id)["id"]


class OldHook(StreamingDataset):
    def __getitem__(self, at: Any) -> Any:
        return super().__getitem__(at)["id"]


def test_hooks(tmp_path: Path) -> None:
    """A subclass changes samples in `get_item`, or as long ago in `__getitem__`; iteration goes through either."""
    folder = write(tmp_path / "a")
    doubled = Doubled(local=folder, batch_size=1)
    assert (doubled[3], doubled[[3]], list(doubled)) == (6, [6], list(range(0, 16, 2)))
    assert list(OldHook(local=folder, batch_size=1)) == list(range(8))


def test_pickle(tmp_path: Path) -> None:
    """A copy by pickle reads, and goes on in the same epoch."""
    found = dataset(write(tmp_path / "a"), shuffle=True)
    ids(found)
    assert ids(pickle.loads(pickle.dumps(found))) == ids(found)


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling_method": "x"}, "Invalid sampling method: x"),
        ({"sampling_granularity": 0}, "`sampling_granularity` must be a positive integer"),
        ({"batching_method": "x"}, "Invalid batching method: x"),
        ({"shuffle_seed": -1}, "`shuffle_seed` must be a non-negative integer"),
        ({"epoch_size": -1}, "Epoch size cannot be negative"),
        ({"epoch_size": "x"}, "Unsupported value/suffix"),
        ({"validate_hash": "sha1"}, "Hash algorithm `sha1` chosen for data validation does not match"),
        ({"rank": 1}, "`rank` and `world_size` go together"),
        ({"streams": [Stream(local="x")]}, "either `streams` or `remote`/`local`, but not both"),
    ],
)
def test_bad_arguments(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    """Each is a ValueError in words that name the argument."""
    with pytest.raises(ValueError, match=message):
        StreamingDataset(local=write(tmp_path / "a"), **options)


def test_unknown_argument() -> None:
    """A name that never was one is a TypeError."""
    with pytest.raises(TypeError, match="batchsize"):
        StreamingDataset(local="x", batchsize=1)


def test_an_earlier_method(tmp_path: Path) -> None:
    """`download_shard` is `prepare_shard`; no streams at all are an error."""
    StreamingDataset(local=write(tmp_path / "a")).download_shard(1)
    with pytest.raises(ValueError, match="either `streams` or `remote`/`local`"):
        StreamingDataset(streams=[])


def test_earlier_names(tmp_path: Path) -> None:
    """`samples_per_epoch` works, with a warning that gives the new name."""
    folder = write(tmp_path / "a")
    with pytest.warns(DeprecationWarning, match="epoch_size"):
        assert StreamingDataset(local=folder, samples_per_epoch=4).epoch_size == 4


def test_earlier_names_of_a_stream(tmp_path: Path) -> None:
    """`samples` is `choose`; `keep_raw`, which is gone, says so and changes nothing."""
    folder = write(tmp_path / "a")
    with pytest.warns(DeprecationWarning, match="choose"):
        assert StreamingDataset(streams=[Stream(local=folder, samples=5)]).epoch_size == 5
    with pytest.warns(DeprecationWarning, match="`keep_raw` is ignored"):
        assert StreamingDataset(local=folder, keep_raw=True).epoch_size == 8
    with pytest.raises(TypeError, match="keeps_raw"):
        Stream(local=folder, keeps_raw=True)


def test_no_batch_size(tmp_path: Path) -> None:
    """Without a batch size the order is dealt sample by sample: each comes once."""
    found = StreamingDataset(local=write(tmp_path / "a"))
    assert found[3]["id"] == 3
    assert ids(found) == list(range(8))


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    """Relative and absolute weights, and two of one stream."""
    with pytest.raises(ValueError, match="At most one of"):
        Stream(local="x", repeat=1, choose=1)
    streams = [
        Stream(local=write(tmp_path / "a"), proportion=1),
        Stream(local=write(tmp_path / "b", [4], 8), repeat=1),
    ]
    with pytest.raises(ValueError, match=r"Relative .* and absolute"):
        StreamingDataset(streams=streams)


def test_missing_and_corrupt_index(tmp_path: Path) -> None:
    """No index, an empty one, one without shards: three messages."""
    with pytest.raises(ObjectMissingError, match="No `remote` provided, but local file") as missing:
        StreamingDataset(local=str(tmp_path))
    assert isinstance(missing.value, RuntimeError)
    (tmp_path / "index.json").write_text("")
    with pytest.raises(IndexFormatError, match="is empty or corrupted"):
        StreamingDataset(local=str(tmp_path))
    (tmp_path / "index.json").write_text('{"shards": [], "version": 2}')
    with pytest.raises(RuntimeError, match="contains no samples"):
        StreamingDataset(local=str(tmp_path))


def test_validate_hash(tmp_path: Path) -> None:
    """A shard that is not what was written is refused when it is read."""
    folder = write(tmp_path / "a", hashes=["sha1"])
    path = tmp_path / "a" / "shard.00001.mds"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    found = StreamingDataset(local=folder, validate_hash="sha1")
    assert found[0]["id"] == 0
    with pytest.raises(ShardCorruptError, match=r"Checksum failure: .*shard\.00001"):
        found[5]


def test_a_missing_shard_raises_in_the_loop(tmp_path: Path) -> None:
    """The epoch does not end early."""
    folder = write(tmp_path / "a")
    (tmp_path / "a" / "shard.00001.mds").unlink()
    seen: list[int] = []
    with pytest.raises(ObjectMissingError, match=r"shard\.00001"):
        seen.extend(sample["id"] for sample in dataset(folder))
    assert seen == [0, 1, 2, 3, 4]


def test_reused_local_directory(tmp_path: Path) -> None:
    """Two streams can't share one local folder; splits of one are two."""
    streams = [Stream(remote=str(tmp_path / name), local=str(tmp_path / "cache")) for name in "ab"]
    with pytest.raises(ValueError, match="Reused local directory"):
        StreamingDataset(streams=streams)
    splits = [Stream(local=str(tmp_path), split=name) for name in "cd"]
    for name in "cd":
        write(tmp_path / name)
    assert StreamingDataset(streams=splits).num_samples == 16


# ---- batches ---------------------------------------------------------------------------------------------------------


def test_load_batch(tmp_path: Path) -> None:
    """Columns as arrays: numbers by value, text as bytes and offsets; memory is used again."""
    streams = [Stream(local=write(tmp_path / "a")), Stream(local=write(tmp_path / "b", [4], 8))]
    found = StreamingDataset(streams=streams)
    wanted = [9, 0, 0, 7, 5]
    batch = found.load_batch(wanted)
    assert batch["id"].tolist() == wanted
    values, offsets = batch["text"]
    texts = [bytes(values[start:stop]).decode() for start, stop in pairwise(offsets)]
    assert texts == [f"sample {number}" for number in wanted]
    again = found.load_batch([1, 2], columns=["text"], out=batch)
    assert again.keys() == {"text"}
    assert np.shares_memory(again["text"][0], values)
    assert bytes(again["text"][0]) == b"sample 1sample 2"


def test_load_batch_refuses(tmp_path: Path) -> None:
    """Ids out of range and unknown columns."""
    found = StreamingDataset(local=write(tmp_path / "a"))
    with pytest.raises(IndexError, match="expected 0 to 7"):
        found.load_batch([8])
    with pytest.raises(KeyError, match="expected one of id, text"):
        found.load_batch([1], columns=["x"])
    assert found.load_batch([])["id"].tolist() == []


def test_no_warning_in_plain_use(tmp_path: Path) -> None:
    """Constructing and iterating warns of nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ids(dataset(write(tmp_path / "a"), shuffle=True))
