"""Bytes against real mosaicml-streaming: what either writes, the other reads, and uncompressed shards are the same."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from streaming.mds.compression import decompress
from streaming.mds.hashing import hash_all
from streaming.mds.index import Index, ShardInfo, dump_index, parse_index
from streaming.mds.layout import read_offsets, sample_decoder
from streaming.mds.split import line_decoder, read_line_offsets
from streaming.writer import CSVWriter, JSONWriter, MDSWriter, TSVWriter, Writer, XSVWriter
from tests.peer import samples
from tests.peer.alone import alone

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".peer" / "bin" / "python"
LINES: dict[str, type[Writer]] = {"json": JSONWriter, "csv": CSVWriter, "tsv": TSVWriter, "xsv": XSVWriter}

pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(not PYTHON.exists(), reason="mosaicml-streaming is not installed: run scripts/peer"),
]


def peer(*arguments: str | Path) -> str:
    """What the peer's side prints."""
    command = [PYTHON, "-P", "-W", "ignore", Path(__file__).with_name("peer_side.py"), *arguments]
    with alone(), tempfile.TemporaryDirectory() as scratch:  # it leaves its lock files there
        environment = {"PATH": os.environ["PATH"], "TMPDIR": scratch}
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of datasets that the peer wrote."""
    folder = tmp_path_factory.mktemp("theirs")
    peer("write", folder)
    return folder


def write(out: Path, compression: str | None, hashes: list[str], **more: Any) -> Path:
    """A dataset of ours with the samples that the peer writes."""
    with MDSWriter(
        columns=samples.COLUMNS, out=out, compression=compression, hashes=hashes, size_limit=samples.SIZE_LIMIT, **more
    ) as writer:
        for number in range(samples.COUNT):
            writer.write(samples.sample(number))
    return out


def write_lines(out: Path, form: str, compression: str | None) -> Path:
    """The same in a format of text lines."""
    extra = {"separator": "::"} if form == "xsv" else {}
    with LINES[form](
        columns=samples.LINE_COLUMNS, out=out, compression=compression, hashes=["sha1"], size_limit=300, **extra
    ) as writer:
        for number in range(40):
            writer.write(samples.line(number))
    return out


def raw_files(folder: Path) -> tuple[Index, dict[str, bytes]]:
    """A dataset's index, and its files decompressed and compared with their sizes and hashes."""
    index = parse_index((folder / "index.json").read_bytes())
    found = {}
    for shard in index.shards:
        for raw, stored in shard.files():
            data = (folder / (stored or raw).basename).read_bytes()
            if stored is not None:
                assert len(data) == stored.bytes
                assert hash_all(shard.hashes, data) == stored.hashes
                assert shard.compression is not None
                data = bytes(decompress(shard.compression, data, raw.bytes))
            assert len(data) == raw.bytes
            assert hash_all(shard.hashes, data) == raw.hashes
            found[raw.basename] = data
    return index, found


def decoded(shard: ShardInfo, files: dict[str, bytes]) -> list[dict[str, Any]]:
    """All samples of a shard."""
    data = files[shard.raw_data.basename]
    if shard.raw_meta is None:
        decode = sample_decoder(shard.schema, allow_unsafe_types=True)
        offsets = read_offsets(data, shard.samples, len(data))
    else:
        decode = line_decoder(shard.schema)
        offsets = read_line_offsets(files[shard.raw_meta.basename], shard.samples, len(data))
    return [decode(data, *offsets[at : at + 2].tolist()) for at in range(shard.samples)]


def values(folder: Path) -> list[dict[str, Any]]:
    """A dataset's samples as we read them, values as text."""
    index, files = raw_files(folder)
    every = [sample for shard in index.shards for sample in decoded(shard, files)]
    return [{name: samples.plain(value) for name, value in sample.items()} for sample in every]


@pytest.mark.parametrize("hashes", samples.HASHES, ids=len)
@pytest.mark.parametrize("compression", samples.COMPRESSIONS)
def test_shards_are_the_peers_byte_for_byte(
    theirs: Path, tmp_path: Path, compression: str | None, hashes: list[str]
) -> None:
    """Every encoding: raw shards are equal, hashes too, and what the peer stored compressed we decompress to them."""
    their_folder = theirs / f"mds-{compression}-{len(hashes)}".replace(":", "_")
    their_index, their_files = raw_files(their_folder)
    our_index, our_files = raw_files(write(tmp_path / "ours", compression, hashes))
    assert len(their_index.shards) > 3
    assert our_files == their_files
    assert [shard.raw_data for shard in our_index.shards] == [shard.raw_data for shard in their_index.shards]
    assert dump_index(their_index.shards) == (their_folder / "index.json").read_bytes()
    if compression is None:
        assert (tmp_path / "ours" / "index.json").read_bytes() == (their_folder / "index.json").read_bytes()


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("form", list(LINES))
def test_lines_are_the_peers_byte_for_byte(theirs: Path, tmp_path: Path, form: str, compression: str | None) -> None:
    """json, csv, tsv, xsv: data files, meta files and the index of raw datasets are equal."""
    their_folder = theirs / f"{form}-{compression}"
    their_index, their_files = raw_files(their_folder)
    _, our_files = raw_files(write_lines(tmp_path / "ours", form, compression))
    assert our_files == their_files
    assert dump_index(their_index.shards) == (their_folder / "index.json").read_bytes()
    if compression is None:
        assert (tmp_path / "ours" / "index.json").read_bytes() == (their_folder / "index.json").read_bytes()


def test_both_read_every_value_alike(theirs: Path, tmp_path: Path) -> None:
    """Each dataset, the peer's and ours of the same kind: both readers give the same values, types included."""
    ours = {f"mds-{name}-1".replace(":", "_"): name for name in samples.COMPRESSIONS}
    folders = [theirs / name for name in ours]
    folders += [write(tmp_path / name, compression, ["sha1"]) for name, compression in ours.items()]
    folders += [theirs / f"{form}-zstd" for form in LINES]
    folders += [write_lines(tmp_path / form, form, "zstd") for form in LINES]
    for folder, line in zip(folders, peer("read", *folders).splitlines(), strict=True):
        assert json.loads(line) == json.loads(json.dumps(values(folder))), folder.name


@pytest.mark.parametrize("frame", ["sample", 4096, "256kb"])
def test_the_peer_streams_our_seekable_zstd(tmp_path: Path, frame: int | str) -> None:
    """StreamingDataset with default arguments decompresses and reads shards of many frames and a seek table."""
    folder = write(tmp_path / "ours", "zstd:7", ["sha1"], frame=frame)
    expected = values(folder)
    assert json.loads(peer("stream", folder)) == json.loads(json.dumps(expected))
