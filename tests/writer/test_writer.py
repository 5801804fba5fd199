"""Writers into a folder: shards of the right size, the index last, and what can't be read back refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import zstandard

import streaming
from streaming.mds.compression import decompress
from streaming.mds.hashing import hash_all
from streaming.mds.index import Index, parse_index
from streaming.mds.layout import read_offsets, sample_decoder
from streaming.mds.seekable import SeekTable
from streaming.mds.split import line_decoder, read_line_offsets
from streaming.writer import CSVWriter, JSONWriter, MDSWriter, TSVWriter, Writer, XSVWriter

COLUMNS = {"b": "bytes", "x": "int"}
LINES: dict[str, type[Writer]] = {"json": JSONWriter, "csv": CSVWriter, "tsv": TSVWriter, "xsv": XSVWriter}


def write(out: Path, count: int = 10, payload: int = 50, **arguments: Any) -> Index:
    """A dataset of `count` samples; its index."""
    with MDSWriter(columns=COLUMNS, out=out, **arguments) as writer:
        for number in range(count):
            writer.write({"b": bytes([number % 256]) * payload, "x": number})
    return parse_index((out / "index.json").read_bytes())


def write_all(writer: Writer, samples: list[dict[str, Any]]) -> None:
    """The samples, as the body of a `with`."""
    with writer:
        for sample in samples:
            writer.write(sample)


def read(folder: Path) -> list[Any]:
    """Every sample, every size and every hash compared with the index."""
    samples = []
    for shard in parse_index((folder / "index.json").read_bytes()).shards:
        data = (folder / (shard.zip_data or shard.raw_data).basename).read_bytes()
        if shard.zip_data is not None:
            assert len(data) == shard.zip_data.bytes
            assert hash_all(shard.hashes, data) == shard.zip_data.hashes
            data = bytes(decompress(str(shard.compression), data, shard.raw_data.bytes))
        assert hash_all(shard.hashes, data) == shard.raw_data.hashes
        offsets = read_offsets(data, shard.samples, shard.raw_data.bytes).tolist()
        decode = sample_decoder(shard.schema)
        samples += [decode(data, offsets[at], offsets[at + 1]) for at in range(shard.samples)]
    return samples


@pytest.mark.parametrize(("limit", "samples", "size"), [(300, 11, 298), (1000, 69, 995), ("1kb", 71, 1019)])
def test_shards_are_as_full_as_the_peers(tmp_path: Path, limit: int | str, samples: int, size: int) -> None:
    """The limit counts the whole file, its config text included: these numbers are mosaicml-streaming's."""
    with MDSWriter(columns={"x": "int"}, out=tmp_path / "ds", size_limit=limit) as writer:
        for number in range(samples + 1):
            writer.write({"x": number})
    first, second = parse_index((tmp_path / "ds" / "index.json").read_bytes()).shards
    assert (first.samples, first.raw_data.bytes, second.samples) == (samples, size, 1)
    assert (tmp_path / "ds" / "shard.00000.mds").stat().st_size == size


@pytest.mark.parametrize("compression", [None, "zstd", "zstd:22", "gz", "bz2:1", "br:5", "snappy"])
@pytest.mark.parametrize("hashes", [None, "sha1", ["xxh3_64", "sha1"], ("blake2b",)])
def test_what_is_written_is_read(tmp_path: Path, compression: str | None, hashes: Any) -> None:
    """Each compression with hashes in each form that writers take."""
    index = write(tmp_path / "ds", compression=compression, hashes=hashes, size_limit=600)
    assert len(index.shards) > 1
    assert read(tmp_path / "ds") == [{"b": bytes([number]) * 50, "x": number} for number in range(10)]
    assert sorted(path.name for path in (tmp_path / "ds").iterdir()) == sorted(
        ["index.json", *((shard.zip_data or shard.raw_data).basename for shard in index.shards)]
    )


def test_the_index_is_as_the_peer_writes_it(tmp_path: Path) -> None:
    """Keys sorted, default separators, no newline at the end."""
    write(tmp_path / "ds", 1, hashes="md5")
    text = (tmp_path / "ds" / "index.json").read_text()
    assert text == json.dumps(json.loads(text), sort_keys=True)
    assert json.loads(text)["shards"][0]["size_limit"] == 1 << 26


@pytest.mark.parametrize(("frame", "most"), [(4096, 4096), ("1kb", 1024), ("sample", 10**9)])
def test_zstd_shards_are_seekable_at_samples(tmp_path: Path, frame: int | str, most: int) -> None:
    """Frames end where samples end, and an ordinary decoder reads the file."""
    index = write(tmp_path / "ds", 40, 300, compression="zstd", frame=frame)
    (shard,) = index.shards
    assert shard.zip_data is not None
    stored = (tmp_path / "ds" / shard.zip_data.basename).read_bytes()
    table = SeekTable.parse(stored, len(stored), shard.raw_data.bytes)
    assert table is not None
    raw = zstandard.ZstdDecompressor().stream_reader(stored, read_across_frames=True).read()
    offsets = read_offsets(raw, 40, len(raw)).tolist()
    assert set(table.raw_at.tolist()) <= {0, *offsets}
    assert max(frame.raw_len for frame in table.frames(1, len(table))) <= most
    if frame == "sample":
        assert len(table) == 41


def test_default_frames_are_256_kib(tmp_path: Path) -> None:
    """As many samples as fit share a frame; a sample that is larger is cut."""
    with MDSWriter(columns={"b": "bytes"}, out=tmp_path / "ds", compression="zstd:1") as writer:
        for size in (100 << 10, 100 << 10, 100 << 10, 600 << 10):
            writer.write({"b": bytes(size)})
    stored = (tmp_path / "ds" / "shard.00000.mds.zstd").read_bytes()
    table = SeekTable.parse(stored, len(stored))
    assert table is not None
    sizes = [frame.raw_len for frame in table.frames(1, len(table))]
    assert sizes[:2] == [2 * (4 + (100 << 10)), 4 + (100 << 10)]
    assert len(sizes) == 5
    assert max(sizes) <= 256 << 10


def test_no_samples_are_an_index_without_shards(tmp_path: Path) -> None:
    """A writer that was given nothing still leaves a dataset."""
    assert write(tmp_path / "ds", 0).shards == []
    assert (tmp_path / "ds" / "index.json").read_bytes() == b'{"shards": [], "version": 2}'


def test_samples_over_the_limit_have_a_shard_each(tmp_path: Path) -> None:
    """Also the very first, before which the peer writes a shard of nothing."""
    assert [shard.samples for shard in write(tmp_path / "ds", 3, 5000, size_limit=1000).shards] == [1, 1, 1]


@pytest.mark.parametrize("limit", [None, 0])
def test_no_limit_is_one_shard(tmp_path: Path, limit: int | None) -> None:
    """None and 0 never start a second one."""
    assert [shard.samples for shard in write(tmp_path / "ds", 100, size_limit=limit).shards] == [100]


def test_a_shard_of_four_gib_is_refused(tmp_path: Path) -> None:
    """Offsets have 32 bits; without a limit the sample that would pass them is refused and the rest stays good."""
    with MDSWriter(columns=COLUMNS, out=tmp_path / "ds", size_limit=None) as writer:
        writer.write({"b": b"kept", "x": 1})
        writer.new_shard_size += (1 << 32) - 200
        with pytest.raises(ValueError, match="set size_limit, or write smaller samples"):
            writer.write({"b": b"too much", "x": 2})
    assert [sample["b"] for sample in read(tmp_path / "ds")] == [b"kept"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"size_limit": -1}, ValueError, "`size_limit` must be greater than zero, instead, found as -1"),
        ({"size_limit": 1 << 32}, ValueError, r"`size_limit` must be less than 2\*\*32, instead, found as 4294967296"),
        ({"size_limit": "lots"}, ValueError, "expected a size like 64mb"),
        ({"compression": "zstd:23"}, ValueError, "Invalid compression: zstd:23"),
        ({"hashes": ["sha0"]}, ValueError, "Invalid hash: sha0"),
        (
            {"columns": {"x": "nope"}},
            TypeError,
            "MDSWriter passed column `x` with encoding `nope` is unsupported.*uint8",
        ),
        ({"columns": {}}, ValueError, "columns: expected at least one"),
        ({"frame": 0, "compression": "zstd"}, ValueError, "frame: expected 'sample' or a size"),
        ({"frame": "1kb", "compression": "gz"}, ValueError, "frame: expected compression zstd, got gz"),
        ({"nonsense": 1}, ValueError, r"Invalid Writer argument\(s\): \['nonsense'\]"),
        (
            {"out": ("a", "b", "c")},
            ValueError,
            "Invalid `out` argument. It is either a string of local/remote directory",
        ),
        ({"out": ("a", None)}, ValueError, "Invalid `out` argument"),
        ({"out": "ss4://bucket/x"}, ValueError, "Invalid Cloud provider prefix: ss4"),
        ({"out": "gcs://bucket/x"}, ValueError, "Invalid Cloud provider prefix: gcs.*S3_ENDPOINT_URL"),
        ({"remote": "ss4://bucket/x"}, ValueError, "Invalid Cloud provider prefix: ss4"),
    ],
)
def test_arguments_that_cannot_be_are_refused(
    tmp_path: Path, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    """At once, and nothing is left behind."""
    with pytest.raises(error, match=message):
        MDSWriter(**{"columns": COLUMNS, "out": tmp_path / "ds", **arguments})
    assert not (tmp_path / "ds").exists()


def test_a_folder_with_something_in_it_is_not_touched(tmp_path: Path) -> None:
    """Without exist_ok it is an error; with it the old dataset goes, and nothing else."""
    write(tmp_path / "ds", 50, size_limit=600)
    (tmp_path / "ds" / "notes.txt").write_text("mine")
    before = sorted((tmp_path / "ds").iterdir())
    with pytest.raises(FileExistsError, match="is not empty"):
        MDSWriter(columns=COLUMNS, out=tmp_path / "ds")
    assert sorted((tmp_path / "ds").iterdir()) == before
    write(tmp_path / "ds", 1, exist_ok=True)
    names = sorted(path.name for path in (tmp_path / "ds").iterdir())
    assert names == ["index.json", "notes.txt", "shard.00000.mds"]


def test_a_sample_that_cannot_be_written_leaves_the_others(tmp_path: Path) -> None:
    """The error names the column; the writer goes on, and finishes also when its block raises, as the peer's does."""
    samples = [{"b": b"1", "x": 1}, {"b": b"2", "x": "2"}]
    with pytest.raises(TypeError, match="column 'x': expected int, got str"):
        write_all(MDSWriter(columns=COLUMNS, out=tmp_path / "ds"), samples)
    assert read(tmp_path / "ds") == [{"b": b"1", "x": 1}]


def test_a_shard_that_cannot_be_written_leaves_no_index(tmp_path: Path) -> None:
    """The folder vanished: the error is the writer's, and no index claims a dataset."""
    writer = MDSWriter(columns=COLUMNS, out=tmp_path / "ds", size_limit=300)
    (tmp_path / "ds").rmdir()
    with pytest.raises(FileNotFoundError):
        write_all(writer, [{"b": bytes(100), "x": number} for number in range(10)])
    assert not (tmp_path / "ds").exists()


def test_a_killed_writer_leaves_no_index(tmp_path: Path) -> None:
    """Shards are there, the index is not: nobody takes them for a dataset."""
    script = (
        "import os, sys; from streaming import MDSWriter\n"
        "writer = MDSWriter(columns={'x': 'int'}, out=sys.argv[1], size_limit=300)\n"
        "for x in range(100): writer.write({'x': x})\n"
        "os.kill(os.getpid(), 9)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "ds")], cwd=root, check=False)
    assert done.returncode == -9
    names = [path.name for path in (tmp_path / "ds").iterdir()]
    assert "shard.00000.mds" in names
    assert "index.json" not in names


def test_finish_is_once(tmp_path: Path) -> None:
    """A second finish does nothing; a write after it is an error."""
    writer = MDSWriter(columns=COLUMNS, out=str(tmp_path / "a" / "b"))
    writer.write({"b": b"", "x": 1})
    writer.finish()
    writer.finish()
    assert [shard["samples"] for shard in writer.shards] == [1]
    with pytest.raises(ValueError, match="the writer is finished"):
        writer.write({"b": b"", "x": 2})


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("form", list(LINES))
def test_lines_are_read_back(tmp_path: Path, form: str, compression: str | None) -> None:
    """Two files a shard, each with its own size and hashes, compressed or not."""
    arguments = {"separator": "::"} if form == "xsv" else {}
    expected = [{"count": number, "word": f"w{number}"} for number in range(30)]
    with LINES[form](
        columns={"word": "str", "count": "int"}, out=tmp_path, compression=compression, hashes="sha1", size_limit=100,
        **arguments,
    ) as writer:  # fmt: skip
        for sample in expected:
            writer.write(sample)
    found = []
    for shard in parse_index((tmp_path / "index.json").read_bytes()).shards:
        assert shard.raw_data.bytes <= 100 + len("count::word\n")
        files = []
        for raw, stored in shard.files():
            data = (tmp_path / (stored or raw).basename).read_bytes()
            files.append(bytes(decompress("zstd", data, raw.bytes)) if stored else data)
            assert hash_all(["sha1"], files[-1]) == raw.hashes
        offsets = read_line_offsets(files[1], shard.samples, len(files[0])).tolist()
        decode = line_decoder(shard.schema)
        found += [decode(files[0], *offsets[at : at + 2]) for at in range(shard.samples)]
    assert found == expected


def test_every_writer_is_a_name_of_the_package() -> None:
    """As in mosaicml-streaming; and importing the package alone brings no library."""
    for writer in (MDSWriter, *LINES.values()):
        assert getattr(streaming, writer.__name__) is writer
    script = "import sys, streaming; print(sorted({'numpy', 'torch', 'boto3', 'zstandard'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_folder_of_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`~` is the user's home."""
    monkeypatch.setenv("HOME", str(tmp_path))
    with MDSWriter(columns={"x": "int"}, out="~/a") as writer:
        writer.write({"x": 1})
    assert (tmp_path / "a" / "index.json").exists()


@pytest.mark.parametrize("out", [("a",), ("a", None), ("a", "b", "c"), {"a", "s3://b/c"}, ()])
def test_an_out_that_is_no_pair(tmp_path: Path, out: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anything but a folder, a URL or a pair of them is refused, and nothing is made; a set has no order."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="Invalid `out`"):
        MDSWriter(columns={"x": "int"}, out=out)
    assert not list(tmp_path.iterdir())
