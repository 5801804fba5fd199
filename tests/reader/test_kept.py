"""Tables of large indexes of plain folders, kept for later processes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from streaming import kept
from streaming.errors import IndexFormatError
from streaming.sources import read_tables
from tests.mds.test_index import mds, text

if TYPE_CHECKING:
    from pathlib import Path

SHARDS = 15_000


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "mdsfs" / "tables"


def write(folder: Path, shards: int = SHARDS, first: dict[str, Any] | None = None) -> Path:
    """A folder with an index, of which the shards don't matter."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.json").write_bytes(text(first or mds(), *(mds(number) for number in range(1, shards))))
    return folder


def test_a_large_index_is_parsed_once(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time the tables are mapped: the same, and the index is not looked into."""
    folder = write(tmp_path / "a")
    first = read_tables(folder)
    assert len(list(home.iterdir())) == 1
    monkeypatch.setattr("streaming.sources.index_tables", None)
    second = read_tables(folder)
    assert list(first.names()) == list(second.names())
    assert len(second.files) == SHARDS


def test_a_changed_index_is_parsed_again(home: Path, tmp_path: Path) -> None:
    """A file that was replaced has other tables."""
    folder = write(tmp_path / "a")
    assert len(read_tables(folder).files) == SHARDS
    write(folder, SHARDS + 1)
    assert len(read_tables(folder).files) == SHARDS + 1


def test_a_small_index_leaves_no_trace(home: Path, tmp_path: Path) -> None:
    """Most datasets never touch the user's cache directory."""
    assert len(read_tables(write(tmp_path / "a", 10)).files) == 10
    assert not home.exists()


def test_damaged_tables_are_replaced(home: Path, tmp_path: Path) -> None:
    """What is no whole table is made again."""
    folder = write(tmp_path / "a")
    read_tables(folder)
    (path,) = home.iterdir()
    for left in (0, 100, path.stat().st_size // 2):
        os.truncate(path, left)
        assert len(read_tables(folder).files) == SHARDS


def test_only_so_many_are_kept(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables that were used longest ago go, and what was left unfinished."""
    monkeypatch.setattr(kept, "MOST", 2)
    home.mkdir(parents=True)
    (home / "tmp-of-a-killed-process").touch()
    os.utime(home / "tmp-of-a-killed-process", (0, 0))
    for name in "abc":
        read_tables(write(tmp_path / name))
    assert len([path for path in home.iterdir() if path.suffix == ".tables"]) == 2
    assert len(list(home.iterdir())) == 2


@pytest.mark.parametrize("kind", ["a file in the way", "others may write there"])
def test_without_a_folder_of_our_own(home: Path, tmp_path: Path, kind: str) -> None:
    """Nothing is kept, and nothing that is there is believed."""
    if kind == "a file in the way":
        home.parent.parent.mkdir()
        home.parent.write_text("")
    else:
        home.mkdir(parents=True)
        home.chmod(0o777)
    assert len(read_tables(write(tmp_path / "a")).files) == SHARDS
    assert not home.is_dir() or not list(home.iterdir())


def test_a_large_bad_index_says_what_is_wrong(home: Path, tmp_path: Path) -> None:
    """The quick way through finds that something is wrong, the strict one says what."""
    folder = write(tmp_path / "a", first=mds() | {"samples": -1})
    with pytest.raises(IndexFormatError, match="shard 0: samples: expected an integer"):
        read_tables(folder)
    assert not home.exists() or not list(home.iterdir())
