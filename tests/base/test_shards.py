"""Single shards, single files, and the order of an epoch, under mosaicml-streaming's names."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from streaming import CSVWriter, JSONWriter, LocalDataset, MDSWriter, StreamingDataset, TSVWriter, XSVWriter
from streaming.base.batching import generate_work
from streaming.base.format import FileInfo, Reader, reader_from_json
from streaming.base.format.base.reader import JointReader, SplitReader
from streaming.base.format.base.writer import JointWriter, SplitWriter
from streaming.base.format.mds import MDSReader
from streaming.base.storage import (
    CloudDownloader,
    CloudUploader,
    LocalDownloader,
    LocalUploader,
    S3Downloader,
    S3Uploader,
    download_file,
)
from streaming.base.world import World
from streaming.errors import IndexFormatError, ObjectMissingError, SourceMissingError

if TYPE_CHECKING:
    from pathlib import Path

    from tests.servers import StorageServer


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("kind", [MDSWriter, JSONWriter, CSVWriter, TSVWriter, XSVWriter])
def test_a_shard_by_its_entry_in_the_index(tmp_path: Path, kind: type, compression: str | None) -> None:
    """The reader that `reader_from_json` gives has the shard's samples, in a split's folder."""
    extra = {"separator": "|"} if kind is XSVWriter else {}
    with kind(columns={"n": "int"}, out=tmp_path / "train", compression=compression, **extra) as writer:
        for number in range(5):
            writer.write({"n": number})
    (entry,) = json.loads((tmp_path / "train" / "index.json").read_text())["shards"]
    reader = reader_from_json(str(tmp_path), "train", entry)
    assert isinstance(reader, Reader)
    assert isinstance(reader, JointReader if kind is MDSWriter else SplitReader)
    assert isinstance(writer, JointWriter if kind is MDSWriter else SplitWriter)
    assert len(reader) == reader.size == 5
    assert [sample["n"] for sample in reader[-2:]] == [3, 4]
    assert (reader.column_names, reader.column_encodings) == (["n"], ["int"])
    raw, _ = reader.file_pairs[0]
    assert isinstance(raw, FileInfo)
    assert raw.basename == entry["raw_data"]["basename"]


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("kind", [MDSWriter, JSONWriter, XSVWriter])
def test_the_shards_of_a_dataset(tmp_path: Path, kind: type, compression: str | None) -> None:
    """They are such readers: with what the index says of each, its samples, and these as they are stored."""
    extra = {"separator": "|"} if kind is XSVWriter else {}
    options = {"columns": {"n": "int"}, "compression": compression, "hashes": ["md5", "sha1"], "size_limit": 300}
    with kind(out=tmp_path / "train", **options, **extra) as writer:
        for number in range(100):
            writer.write({"n": number})
    entries = json.loads((tmp_path / "train" / "index.json").read_text())["shards"]
    datasets = (StreamingDataset(local=str(tmp_path), split="train"), LocalDataset(str(tmp_path), "train"))
    for dataset in datasets:
        assert len(dataset.shards) == len(entries)
        for number, (shard, entry) in enumerate(zip(dataset.shards, entries, strict=True)):
            alone = reader_from_json(str(tmp_path), "train", entry)
            assert type(shard) is type(alone)
            for name in set(vars(alone)) - {"size_limit", "_index", "_shard", "_shards"} | {"format"}:
                assert name == "_number" or getattr(shard, name) == getattr(alone, name), name
            assert (shard.dirname, shard.split) == (str(tmp_path), "train")
            first = dataset.spanner.shard_bounds[number]
            assert shard[0] == dataset[int(first)] == shard.decode_sample(shard.get_sample_data(0)) == alone[0]
            stored = sum(each["bytes"] for name, each in entry.items() if name in ("zip_data", "zip_meta") and each)
            assert shard.get_zip_size() == (stored or None)
            assert shard.get_max_size() == shard.get_persistent_size(True) == shard.get_raw_size() + stored
            assert shard.get_persistent_size(False) == shard.get_raw_size()
        assert [sample["n"] for shard in dataset.shards for sample in shard] == list(range(100))
        assert dataset.shards[-1][-1]["n"] == 99
        assert [len(shard) for shard in dataset.shards[1:]] == [entry["samples"] for entry in entries[1:]]
        with pytest.raises(IndexError):
            dataset.shards[len(entries)]


def test_shards_with_unsafe_columns(tmp_path: Path) -> None:
    """A reader says so when it is asked, and decodes."""
    with MDSWriter(columns={"x": "pkl"}, out=tmp_path) as writer:
        writer.write({"x": {1}})
    (entry,) = writer.shards
    dataset = StreamingDataset(local=str(tmp_path), allow_unsafe_types=True)
    for reader in (reader_from_json(str(tmp_path), None, entry), dataset.shards[0]):
        assert reader[0] == {"x": {1}}
        reader.validate(True)
        with pytest.raises(ValueError, match="Column x contains an unsafe type: pkl"):
            reader.validate(False)


def test_a_shard_whose_entry_is_wrong(tmp_path: Path) -> None:
    """An entry that breaks the format is refused at once, one whose file is missing at the first sample."""
    with pytest.raises(IndexFormatError, match="shard 0: version: expected 2"):
        reader_from_json(str(tmp_path), None, {"version": 1})
    with MDSWriter(columns={"n": "int"}, out=tmp_path / "d") as writer:
        writer.write({"n": 1})
    (entry,) = writer.shards
    reader = MDSReader.from_json(str(tmp_path / "elsewhere"), None, entry)
    with pytest.raises(ObjectMissingError):
        reader[0]


# ---- files -----------------------------------------------------------------------------------------------------------


def test_download_file(tmp_path: Path) -> None:
    """The copy appears whole, folders are made; what is there already stays."""
    source = tmp_path / "source"
    source.write_bytes(b"x" * (3 << 20))
    target = tmp_path / "a" / "b" / "copy"
    for place in (str(source), f"file://{source}"):
        target.unlink(missing_ok=True)
        download_file(place, str(target), 60)
        assert target.read_bytes() == source.read_bytes()
    source.write_bytes(b"new")
    CloudDownloader.direct_download(str(source), str(target))
    assert target.stat().st_size == 3 << 20


def test_a_failed_download_leaves_nothing(tmp_path: Path) -> None:
    """No source: an error that names it, and neither file nor folder."""
    with pytest.raises(SourceMissingError, match="gone"):
        CloudDownloader.get(None).download(str(tmp_path / "gone"), str(tmp_path / "a" / "copy"))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="In the absence of local dataset, path to remote dataset must be provided"):
        download_file(None, str(tmp_path / "copy"))
    with pytest.raises(ValueError, match="gs://"):
        CloudDownloader.get("gs://bucket/x")


def test_upload_to_a_folder(tmp_path: Path) -> None:
    """The file is copied, and removed here unless it is to be kept."""
    local, remote = tmp_path / "local", tmp_path / "remote"
    uploader = CloudUploader.get((str(local), str(remote)))
    assert isinstance(uploader, LocalUploader)
    (local / "one").write_text("1")
    assert uploader.list_objects() == [str(local / "one")]
    uploader.upload_file("one")
    assert (remote / "one").read_text() == "1"
    assert uploader.list_objects("o") == []
    (local / "two").write_text("2")
    with pytest.raises(FileExistsError, match=f"Directory is not empty: {local}"):
        CloudUploader.get(str(local))
    CloudUploader.get((str(local), str(remote)), keep_local=True, exist_ok=True).upload_file("two")
    assert (local / "two").exists()
    assert (remote / "two").exists()


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (("a",), "Invalid `out` argument. It is either a string of local/remote directory or a list of two strings"),
        ("ss4://bucket/x", "Invalid Cloud provider prefix: ss4."),
        (("a", "gcs://bucket/x"), "Invalid Cloud provider prefix: gcs."),
    ],
)
def test_uploads_to_nowhere(out: str | tuple[str, str], message: str) -> None:
    """The words are mosaicml-streaming's."""
    with pytest.raises(ValueError, match=message):
        CloudUploader.get(out)


def test_a_bucket(moto: StorageServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files go to a bucket and come back."""
    for name, value in moto.variables.items():
        monkeypatch.setenv(name, value)
    url = moto.url("transfer")
    uploader = CloudUploader.get((str(tmp_path / "up"), url))
    assert isinstance(uploader, S3Uploader)
    (tmp_path / "up" / "file").write_text("content")
    uploader.upload_file("file")
    assert uploader.list_objects() == ["transfer/file"]
    downloader = CloudDownloader.get(url)
    assert isinstance(downloader, S3Downloader)
    assert isinstance(CloudDownloader.get(str(tmp_path)), LocalDownloader)
    downloader.download(f"{url}/file", str(tmp_path / "down"))
    downloader.clean_up()
    assert (tmp_path / "down").read_text() == "content"


# ---- order -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["random", "stratified", "per_stream", "device_per_stream"])
def test_generate_work_is_what_the_dataset_reads(tmp_path: Path, method: str) -> None:
    """The order computed from a dataset object is the order in which it gives its samples."""
    with MDSWriter(columns={"n": "int"}, out=tmp_path, size_limit=400) as writer:
        for number in range(64):
            writer.write({"n": number})
    dataset = StreamingDataset(local=str(tmp_path), shuffle=True, batch_size=4, batching_method=method)
    seen = [sample["n"] for sample in dataset]
    work = generate_work(method, dataset, World(1, 1, 1, 0), 0, 0)
    assert (work.shape[:3], work.shape[4]) == ((1, 1, 1), 4)
    assert work[work >= 0].tolist() == seen
    rest = generate_work(method, dataset, World(1, 1, 1, 0), 0, 16)
    assert rest[rest >= 0].tolist() == seen[16:]


def test_generate_work_needs_settled_arguments(tmp_path: Path) -> None:
    """What is still open is refused, in mosaicml-streaming's words."""

    class Unsettled:
        num_canonical_nodes: int | None = None
        shuffle = True
        shuffle_block_size = None

    dataset = Unsettled()
    with pytest.raises(RuntimeError, match=r"`num_canonical_nodes` can never be None\. Provide a positive integer\."):
        generate_work("random", dataset, World(1, 1, 1, 0), 0, 0)
    dataset.num_canonical_nodes = 1
    with pytest.raises(TypeError, match=f"Dataset `shuffle_block_size` must be an integer. Got {type(None)} instead."):
        generate_work("random", dataset, World(1, 1, 1, 0), 0, 0)
