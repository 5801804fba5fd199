"""A shard that is missing, cut off or wrong stops the training loop with an error, by every way to the bytes."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

from streaming import StreamingDataLoader, StreamingDataset
from streaming.errors import ObjectChangedError, ObjectMissingError, ShardCorruptError, from_wire, to_wire
from streaming.sources import MountedFolder, PlainFolder
from streaming.stream import LocalIndexMissingError
from tests.mount.harness import why_not_mountable
from tests.mount.host import Host

from .samples import write

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FAULTS = ("missing", "truncated", "corrupt")
# The index's second shard of three; a loop that passes it over, or ends at it, has seen fewer samples than this.
SHARDS = (20, 20, 20)
BAD = 1


def break_shard(folder: Path, fault: str) -> None:
    """Do it to the stored file."""
    (path,) = folder.glob(f"shard.0000{BAD}.mds*")
    data = bytearray(path.read_bytes())
    if fault == "missing":
        path.unlink()
        return
    if fault == "truncated":
        data = data[: len(data) * 2 // 3]
    else:
        middle = len(data) // 2
        data[middle : middle + 8] = bytes(byte ^ 0xFF for byte in data[middle : middle + 8])
    path.write_bytes(data)


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A compressed dataset for each fault, in one folder."""
    top = tmp_path_factory.mktemp("broken")
    for fault in FAULTS:
        write(top / fault, SHARDS, compression="zstd", hashes=["sha1"])
        break_shard(top / fault, fault)
    return {fault: top / fault for fault in FAULTS}


@pytest.fixture(scope="module")
def mounted(broken: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """All of them behind one mount."""
    if why := why_not_mountable():
        pytest.skip(why)
    with Host(tmp_path_factory.mktemp("host")) as host:
        yield host.mounted(broken["missing"].parent)


def train(dataset: StreamingDataset, workers: int, *, gathered: bool = False) -> list[Any]:
    """What a loop sees before it ends: it must not end."""
    collate = None if gathered else list
    return list(StreamingDataLoader(dataset, batch_size=4, num_workers=workers, collate_fn=collate))


def check(dataset: StreamingDataset, workers: int, kind: Any) -> None:
    """An error, and an error again: nothing is passed over at a second try."""
    for _ in range(2):
        with pytest.raises(kind):
            train(dataset, workers)
    with pytest.raises(kind):
        train(dataset, workers, gathered=True)
    with pytest.raises(kind):
        _ = dataset[SHARDS[0]]


# An engine finds a file of another size at the store, which then is another object than the index's.
ERRORS: dict[str, tuple[type[Exception], ...]] = {
    "missing": (ObjectMissingError,),
    "truncated": (ShardCorruptError, ObjectChangedError),
    "corrupt": (ShardCorruptError,),
}


def test_errors_of_an_engine_have_their_own_class() -> None:
    """An error that crossed the engine's socket is of the class that has its code, not of one derived from that."""
    assert issubclass(LocalIndexMissingError, ObjectMissingError)
    assert type(from_wire(to_wire(ObjectMissingError("gone")))) is ObjectMissingError


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder(broken: dict[str, Path], fault: str, workers: int) -> None:
    """A compressed shard of a local folder."""
    dataset = StreamingDataset(local=str(broken[fault]), batch_size=4, shuffle=True)
    check(dataset, workers, ERRORS[fault])


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_of_raw_shards(tmp_path: Path, fault: str) -> None:
    """The same of shards that are mapped as they are; only a hash finds a wrong byte in a value."""
    write(tmp_path / "a", SHARDS, hashes=["sha1"])
    break_shard(tmp_path / "a", fault)
    dataset = StreamingDataset(local=str(tmp_path / "a"), batch_size=4, validate_hash="sha1")
    check(dataset, 2, ERRORS[fault])
    assert isinstance(dataset._mix._parts[0].folder, PlainFolder)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_remote(broken: dict[str, Path], cache: Path, fault: str) -> None:
    """Through the engine of a cache folder; after the source was mended the same dataset reads on."""
    source = cache.parent / "source"
    shutil.copytree(broken[fault], source)
    dataset = StreamingDataset(remote=str(source), local=str(cache), batch_size=4, shuffle=True)
    for workers in (0, 1, 2):
        check(dataset, workers, ERRORS[fault])


@pytest.mark.mounted
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_mount(mounted: Path, fault: str, workers: int) -> None:
    """Directly from the cache behind a mount."""
    dataset = StreamingDataset(local=str(mounted / fault), batch_size=4, shuffle=True)
    assert dataset._mix._parts[0].folder.fetches
    check(dataset, workers, ERRORS[fault])


@pytest.mark.mounted
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_mount_without_its_engine(mounted: Path, without_engines: None, fault: str, workers: int) -> None:
    """Through the mounted files themselves, whose reads fail with an OSError."""
    dataset = StreamingDataset(local=str(mounted / fault), batch_size=4, shuffle=True)
    assert isinstance(dataset._mix._parts[0].folder, MountedFolder)
    check(dataset, workers, OSError)
