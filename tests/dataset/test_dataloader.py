"""StreamingDataset under real DataLoaders: torch's own and StreamingDataLoader, with workers forked and spawned."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from streaming import MDSWriter, Stream, StreamingDataLoader, StreamingDataset
from streaming.errors import ObjectMissingError

from .samples import flat, ids, write

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
EPOCHS = ([[2, 1], [6, 5], [4, 7], [3, 0]], [[7, 4], [3, 2], [1, 0], [5, 6]])


def dataset(folder: str, **options: Any) -> StreamingDataset:
    return StreamingDataset(local=folder, **{"batch_size": 2, "num_canonical_nodes": 1, "shuffle": True} | options)


def keep(samples: list[Any]) -> list[int]:
    """A user's collation: a module-level function, so that it reaches spawned workers."""
    return [sample["id"] for sample in samples]


def test_is_an_iterable_dataset(tmp_path: Path) -> None:
    """torch takes it for one, subclasses and pickled copies too."""

    class Mine(StreamingDataset):
        pass

    for kind in (StreamingDataset, Mine):
        assert isinstance(kind(local=write(tmp_path / kind.__name__)), IterableDataset)
    assert not isinstance(Stream(local="x"), IterableDataset)


def test_torch_imported_last(tmp_path: Path) -> None:
    """A dataset that was made before torch was imported works in a DataLoader; importing it brings no torch."""
    folder = write(tmp_path / "a")
    statement = (
        "import sys\n"
        "from streaming import StreamingDataset\n"
        f"made = StreamingDataset(local={folder!r}, batch_size=2, num_canonical_nodes=1)\n"
        "assert list(made)[7]['id'] == 7\n"
        "assert 'torch' not in sys.modules\n"
        "from torch.utils.data import DataLoader\n"
        "loader = DataLoader(made, batch_size=2, num_workers=1)\n"
        "print([batch['id'].tolist() for batch in loader])\n"
    )
    done = subprocess.run([sys.executable, "-c", statement], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[[0, 1], [2, 3], [4, 5], [6, 7]]\n"


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("collate", [None, keep])
def test_order_is_that_of_one_process(tmp_path: Path, workers: int, collate: Callable[..., Any] | None) -> None:
    """Two epochs, whoever reads: torch's workers, or this process in their order."""
    loader = StreamingDataLoader(dataset(write(tmp_path / "a")), batch_size=2, num_workers=workers, collate_fn=collate)
    for expected in EPOCHS:
        found: Any = list(loader)
        assert [batch if collate else batch["id"].tolist() for batch in found] == expected


@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("persistent", [False, True])
def test_torchs_own_loader(tmp_path: Path, context: str, persistent: bool) -> None:
    """Epochs follow each other however workers are made, and the state is known in this process."""
    found = dataset(write(tmp_path / "a"))
    loader: Any = DataLoader(
        found,  # type: ignore[arg-type]  # registered, which mypy does not see
        batch_size=2,
        num_workers=2,
        multiprocessing_context=context,
        persistent_workers=persistent,
    )
    for number, expected in enumerate(EPOCHS):
        assert flat(loader) == expected
        assert found.next_epoch == number + 1
    state = found.state_dict(4, True)
    assert state["epoch"] == 1
    # workers that run already are told too
    found.load_state_dict(state | {"epoch": 7})
    fresh = dataset(str(tmp_path / "a"))
    fresh.next_epoch = 7
    assert flat(loader) == flat(StreamingDataLoader(fresh, batch_size=2))[2:]
    assert found.next_epoch == 8


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("collate", [None, keep])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("after", [1, 2, 3])
def test_resume(
    tmp_path: Path, workers: int, collate: Callable[..., Any] | None, shuffle: bool, batch_size: int, after: int
) -> None:
    """Stopped anywhere and resumed in new objects, with another number of workers, each sample comes once."""
    folder = write(tmp_path / "a", [7, 6, 7])
    options: dict[str, Any] = {"batch_size": batch_size, "shuffle": shuffle}

    def loader(count: int) -> StreamingDataLoader:
        return StreamingDataLoader(
            dataset(folder, **options), batch_size=batch_size, num_workers=count, collate_fn=collate
        )

    def seen(batch: Any) -> list[int]:
        found: list[int] = batch if collate else batch["id"].tolist()
        return found

    whole = [each for batch in loader(workers) for each in seen(batch)]
    first = loader(workers)
    got: list[int] = []
    for number, batch in enumerate(first, 1):
        got += seen(batch)
        if number == after:
            break
    state = json.loads(json.dumps(first.state_dict()))
    second = loader(2 - workers)
    second.load_state_dict(state)
    rest = [each for batch in second for each in seen(batch)]
    assert sorted(got + rest) == sorted(whole)
    assert rest == whole[len(got) :]
    assert second.state_dict() == state | {"sample_in_epoch": 20}


def test_a_state_at_the_end_gives_the_next_epoch(tmp_path: Path) -> None:
    """After the last batch nothing is left of this epoch, then the next one is whole."""
    folder = write(tmp_path / "a")
    first = StreamingDataLoader(dataset(folder), batch_size=2)
    list(first)
    second = StreamingDataLoader(dataset(folder), batch_size=2)
    state = first.state_dict()
    assert state is not None
    second.load_state_dict(state)
    assert flat(second) == []
    assert flat(second) == EPOCHS[1]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_elastic(tmp_path: Path, world: int) -> None:
    """The same global batches on any number of ranks of a node, for the same global batch size."""
    folder = write(tmp_path / "a", [16, 16])
    batches = [
        flat(
            StreamingDataLoader(
                dataset(folder, batch_size=8 // world, rank=rank, world_size=world, local_world_size=world),
                batch_size=8 // world,
                num_workers=2,
            )
        )
        for rank in range(world)
    ]
    alone = flat(StreamingDataLoader(dataset(folder, batch_size=8), batch_size=8))
    merged = [sorted(each for part in parts for each in part) for parts in zip(*batches, strict=True)]
    assert merged == [sorted(batch) for batch in alone]


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")  # torch's, of what it is given
def test_collation_is_torchs(tmp_path: Path) -> None:
    """What is collated here equals what torch makes of the same samples, column by column."""
    columns = {
        "b": "bytes",
        "f": "float32",
        "i": "int",
        "n": "ndarray:int16:2,3",
        "s": "str",
        "u": "uint8",
        "v": "ndarray:float64",
    }
    with MDSWriter(columns=columns, out=str(tmp_path / "a")) as writer:
        for number in range(9):
            writer.write(
                {
                    "b": bytes([number] * number),
                    "f": np.float32(number / 3),
                    "i": -number,
                    "n": np.full((2, 3), number, np.int16),
                    "s": str(number),
                    "u": np.uint8(number),
                    "v": np.full(4, number / 7),
                }
            )
    folder = str(tmp_path / "a")
    ours = list(StreamingDataLoader(dataset(folder, shuffle=False), batch_size=2, num_workers=2))
    theirs = list(DataLoader(dataset(folder, shuffle=False), batch_size=2, num_workers=2))  # type: ignore[arg-type]
    assert len(ours) == len(theirs) == 5
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys()
        for name, value in other.items():
            if isinstance(value, torch.Tensor):
                assert mine[name].dtype == value.dtype
                assert torch.equal(mine[name], value)
            else:
                assert mine[name] == value


class Doubled(StreamingDataset):
    def get_item(self, sample_id: int, retry: int = 7) -> Any:
        return {"id": 2 * super().get_item(sample_id)["id"]}


@pytest.mark.parametrize("workers", [0, 2])
def test_overrides_are_used(tmp_path: Path, workers: int) -> None:
    """A dataset that changes samples is read by torch's workers."""
    found = Doubled(local=write(tmp_path / "a"), batch_size=2, num_canonical_nodes=1)
    loader = StreamingDataLoader(found, batch_size=2, num_workers=workers)
    assert flat(loader) == [[0, 2], [4, 6], [8, 10], [12, 14]]


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("collate", [None, keep])
def test_a_missing_shard_raises(tmp_path: Path, workers: int, collate: Callable[..., Any] | None) -> None:
    """In the training loop, with any number of workers: no epoch that ends early, no hang."""
    folder = write(tmp_path / "a")
    (tmp_path / "a" / "shard.00001.mds").unlink()
    loader = StreamingDataLoader(dataset(folder), batch_size=2, num_workers=workers, collate_fn=collate)
    with pytest.raises(ObjectMissingError, match=r"shard\.00001"):
        list(loader)


def test_counting(tmp_path: Path) -> None:
    """Samples in batches of every usual kind."""
    loader = StreamingDataLoader(dataset(write(tmp_path / "a")), batch_size=2)
    assert loader._get_batch_size({"x": [1, 2, 3]}) == 3
    assert loader._get_batch_size(torch.zeros(4, 2)) == 4
    assert loader._get_batch_size((torch.zeros(5), torch.zeros(5))) == 5
    assert loader._get_batch_size([[1, 2]]) == 2
    assert loader._get_batch_size([{"x": 1}] * 3) == 3
    assert loader._get_batch_size(["text", "more"]) == 2
    with pytest.raises(ValueError, match="Batch is empty"):
        loader._get_batch_size({})


def test_other_datasets(tmp_path: Path) -> None:
    """Any dataset can be loaded; only ours has a state."""
    loader = StreamingDataLoader([{"x": 1}, {"x": 2}], batch_size=2)
    assert [batch["x"].tolist() for batch in loader] == [[1, 2]]
    assert loader.state_dict() is None


def test_many_datasets_few_descriptors(tmp_path: Path) -> None:
    """Ten datasets of 40 shards each in one process that may have 256 files open."""
    folders = [write(tmp_path / str(number), [2] * 40) for number in range(10)]
    statement = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))\n"
        "from streaming import StreamingDataset\n"
        "made = [StreamingDataset(local=each, batch_size=2) for each in sys.argv[1:]]\n"
        "assert all(len(list(each)) == 80 for each in made)\n"
    )
    subprocess.run([sys.executable, "-c", statement, *folders], cwd=ROOT, check=True)


def test_ids_with_a_plain_loader(tmp_path: Path) -> None:
    """The simplest use: a DataLoader over the dataset."""
    loader: Any = DataLoader(dataset(write(tmp_path / "a")), batch_size=None)  # type: ignore[arg-type]
    assert ids(loader) == [each for batch in EPOCHS[0] for each in batch]
