"""Every name that programs import from mosaicml-streaming's modules is there, and importing it costs little."""

from __future__ import annotations

import importlib
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import streaming

ROOT = Path(__file__).resolve().parents[2]

NAMES = {
    "streaming.base": "StreamingDataLoader Stream StreamingDataset"
    " CSVWriter JSONWriter MDSWriter TSVWriter XSVWriter LocalDataset",
    "streaming.base.util": "get_list_arg wait_for_file_to_exist bytes_to_int number_abbrev_to_int"
    " clean_stale_shared_memory get_import_exception_message merge_index retry",
    "streaming.base.format": "CSVWriter FileInfo get_index_basename JSONWriter MDSWriter Reader reader_from_json"
    " TSVWriter XSVWriter CSVReader JSONReader MDSReader TSVReader XSVReader",
    "streaming.base.format.index": "get_index_basename",
    "streaming.base.format.mds": "MDSReader MDSWriter",
    "streaming.base.format.json": "JSONReader JSONWriter",
    "streaming.base.format.xsv": "CSVReader CSVWriter TSVReader TSVWriter XSVReader XSVWriter",
    "streaming.base.format.mds.encodings": "get_mds_encoded_size get_mds_encodings is_mds_encoding mds_decode"
    " mds_encode is_mds_encoding_safe Encoding _encodings Bytes Str Int NDArray UInt8 UInt16 UInt32 UInt64 Int8 Int16"
    " Int32 Int64 Float16 Float32 Float64 StrInt StrFloat StrDecimal PIL JPEG PNG Pickle JSON JPEGArray PILList"
    " JPEGList PNGList",
    "streaming.base.format.json.encodings": "is_json_encoded is_json_encoding Str Int Float",
    "streaming.base.format.xsv.encodings": "is_xsv_encoding xsv_decode xsv_encode Str Int Float",
    "streaming.base.format.base.reader": "FileInfo Reader JointReader SplitReader",
    "streaming.base.format.base.writer": "JointWriter SplitWriter Writer",
    "streaming.base.array": "Array",
    "streaming.base.spanner": "Spanner",
    "streaming.base.world": "World",
    "streaming.base.distributed": "all_gather barrier broadcast get_rank get_local_rank get_local_world_size"
    " get_world_size all_gather_object maybe_init_dist",
    "streaming.base.partition": "get_partitions",
    "streaming.base.shuffle": "get_shuffle get_shuffle_naive get_shuffle_py1br get_shuffle_py1e get_shuffle_py1s"
    " get_shuffle_py2s algos",
    "streaming.base.sampling": "get_sampling",
    "streaming.base.batching": "generate_work",
    "streaming.base.compression": "compress decompress get_compression_extension get_compressions is_compression"
    " Brotli Bzip2 Gzip Snappy Zstandard",
    "streaming.base.hashing": "get_hash get_hashes is_hash",
    "streaming.base.storage": "CloudUploader S3Uploader LocalUploader CloudDownloader S3Downloader LocalDownloader"
    " download_file",
    "streaming.base.constant": "LOCALS BARRIER NEXT_EPOCH CACHE_USAGE SHARD_STATES SHARD_ACCESS_TIMES RESUME"
    " EPOCH_SHAPE EPOCH_DATA SHM_TO_CLEAN BARRIER_FILELOCK CACHE_FILELOCK TICK DEFAULT_TIMEOUT",
    "streaming.base.local": "LocalDataset",
    "streaming.base.dataset": "StreamingDataset",
    "streaming.base.stream": "Stream streams_registry",
    "streaming.base.registry_utils": "TypedRegistry create_registry construct_from_registry import_file save_registry",
    "streaming.base.shared": "SharedArray SharedBarrier SharedMemory SharedScalar get_shm_prefix",
    "streaming.base.shared.prefix": "get_shm_prefix",
    "streaming.base.shared.array": "SharedArray",
    "streaming.base.shared.barrier": "SharedBarrier",
    "streaming.base.shared.memory": "SharedMemory",
    "streaming.base.shared.scalar": "SharedScalar",
    "streaming.base.dataloader": "StreamingDataLoader",
}


@pytest.mark.parametrize("module", NAMES)
def test_names_are_importable_from_their_place(module: str) -> None:
    """Each name of mosaicml-streaming that has a counterpart here stands in the module where programs look for it."""
    found = importlib.import_module(module)
    missing = [name for name in NAMES[module].split() if not hasattr(found, name)]
    assert missing == []


def test_base_holds_no_code() -> None:
    """`streaming.base` is re-exports and nothing else: no module of it defines a function or a class."""
    for path in (ROOT / "streaming" / "base").rglob("*.py"):
        text = path.read_text()
        allowed = 2 if path.parent.name == "base" and path == ROOT / "streaming/base/__init__.py" else 0
        assert text.count("\ndef ") == allowed, path
        assert "\nclass " not in text, path


def test_an_unknown_name_of_base_is_an_attribute_error() -> None:
    """A name that nobody has is refused as by any module."""
    base = importlib.import_module("streaming.base")
    with pytest.raises(AttributeError, match=r"'streaming\.base' has no attribute 'download_shard'"):
        _ = base.download_shard
    assert "MDSWriter" in dir(base)


def test_the_version_says_whose_interface_this_is() -> None:
    """`__version__` compares as the release of mosaicml-streaming that this stands in for, and names ours."""
    assert streaming.__version__ == f"0.13.0+mdsfs.{version('mdsfs')}"


def _loaded(statement: str) -> set[str]:
    program = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_streaming_alone_brings_no_compatibility_name() -> None:
    """`import streaming` loads nothing of `streaming.base` or of what is behind it."""
    loaded = _loaded("import streaming")
    assert not {name for name in loaded if name.startswith(("streaming.base", "streaming.compatibility"))}


def test_helpers_bring_neither_torch_nor_an_sdk() -> None:
    """Helpers, formats, storage and `streaming.base` itself are importable without torch, Pillow or boto3."""
    light = [name for name in NAMES if name.rpartition(".")[2] not in ("dataset", "stream", "dataloader")]
    tops = {name.partition(".")[0] for name in _loaded("import " + ", ".join(light))}
    assert not tops & {"torch", "boto3", "botocore", "PIL", "trio", "mdsfs"}
