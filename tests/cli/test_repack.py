"""`mdsfs repack` as a user meets it: what it says, what it refuses, the bar on a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mdsfs.cli.main import main
from tests.repack.datasets import samples_of, write_mds

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_mds(tmp_path / "old", compression="gz")
    return tmp_path / "old"


def run(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> tuple[int, str, str]:
    """Exit code and what was said."""
    code = main([str(word) for word in argv])
    out, err = capsys.readouterr()
    return code, out, err


def test_one_line_and_nothing_else(capsys: pytest.CaptureFixture[str], source: Path, tmp_path: Path) -> None:
    """Without a terminal: what was done, and silence on stderr."""
    code, out, err = run(capsys, "repack", source, tmp_path / "new", "--frame", "8kb", "--compression", "zstd:1")
    assert (code, err) == (0, "")
    assert re.fullmatch(rf"{tmp_path}/new: 7 shards of 1 datasets, 60 samples, \S+ KiB raw, .+ before, .+ now\n", out)
    assert samples_of(tmp_path / "new") == samples_of(source)


def test_json(capsys: pytest.CaptureFixture[str], source: Path, tmp_path: Path) -> None:
    """The figures as a document, also when everything was done before."""
    for done in (0, 7):
        code, out, _ = run(capsys, "repack", source, f"file://{tmp_path}/new", "--json", "--hashes", "md5,sha1")
        found = json.loads(out)
        assert (code, found["shards"], found["found_done"], found["datasets"]) == (0, 7, done, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--compression", "gz"], "--compression: expected zstd, zstd:1 to zstd:22 or none, got 'gz'"),
        (["--compression", "zstd:23"], "--compression: expected zstd"),
        (["--compression", "none", "--frame", "1mb"], "--frame is for zstd"),
        (["--frame", "0"], "frame: expected 'sample' or a size from 1 to"),
        (["--frame", "big"], "expected a size like 64mb or 10GiB, got 'big'"),
        (["--hashes", "crc"], "Invalid hash: crc. Expected one of"),
        (["--jobs", "0"], "expected a whole number above zero, got '0'"),
    ],
)
def test_options_that_make_no_sense(
    capsys: pytest.CaptureFixture[str], source: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    """One line, 2, and nothing is written."""
    code, out, err = run(capsys, "repack", source, tmp_path / "new", *options)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not (tmp_path / "new").exists()


def test_places_inside_each_other(capsys: pytest.CaptureFixture[str], source: Path) -> None:
    """By any spelling: a dataset can't be repacked onto or into itself."""
    (source.parent / "link").symlink_to(source)
    for destination in (source, source / "new", source.parent, source.parent / "link" / "new", f"file://{source}/x"):
        code, _, err = run(capsys, "repack", source, destination)
        assert (code, "lie in each other" in err) == (2, True)


def test_sources_that_are_none(capsys: pytest.CaptureFixture[str], source: Path, tmp_path: Path) -> None:
    """Nothing there is 3, a wrong index or shard 6; the message names it."""
    (tmp_path / "empty").mkdir()
    for place in ("empty", "missing"):
        assert run(capsys, "repack", tmp_path / place, tmp_path / "new")[0] == 3
    name = "shard.00002.mds.gz"
    (source / name).write_bytes((source / name).read_bytes()[:-1])
    code, _, err = run(capsys, "repack", source, tmp_path / "new")
    assert (code, name in err, err.count("\n")) == (6, True, 1)
    (source / "index.json").write_text("{}")
    code, _, err = run(capsys, "repack", source, tmp_path / "new")
    assert (code, "index.json" in err) == (6, True)


def test_a_bar_on_a_terminal(source: Path, tmp_path: Path) -> None:
    """stderr on a terminal shows how far it is; the terminal is left clean."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "mdsfs", "repack", source, tmp_path / "new", "--frame", "sample"]
    done = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    shown = b""
    while piece := _read(ours):
        shown += piece
    os.close(ours)
    assert done.communicate(timeout=60)[0].startswith(f"{tmp_path}/new: 7 shards".encode())
    assert b"repack:" in shown
    assert b"%" in shown


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 4096)
    except OSError:  # EIO: nobody has the other end any more
        return b""
