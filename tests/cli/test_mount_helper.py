"""`mount.mdsfs` as mount(8) calls it: its words, its exit codes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mdsfs.cli.mount_helper import main

if TYPE_CHECKING:
    from pathlib import Path


def test_what_mount_swallows(tmp_path: Path) -> None:
    """The words that mount(8), fstab and systemd add are taken, together with ours; -f mounts nothing."""
    words = ["s3://b/d", str(tmp_path), "-n", "-v", "-f", "-t", "fuse.mdsfs", "-o"]
    assert main([*words, "rw,_netdev,nofail,noauto,user,x-systemd.automount,cache_limit=50gb,allow_other"]) == 0


@pytest.mark.parametrize("options", ["colour=red", "cache_limit=much", "suid", "config=/no/such/file"])
def test_wrong_options_are_usage(capsys: pytest.CaptureFixture[str], tmp_path: Path, options: str) -> None:
    """1, as mount(8) has it, and one line."""
    assert main(["s3://b/d", str(tmp_path), "-f", "-o", options]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_missing_words_are_usage(capsys: pytest.CaptureFixture[str]) -> None:
    """A call without a mountpoint is 1."""
    assert main(["s3://b/d"]) == 1
    assert capsys.readouterr().err.startswith("mount.mdsfs: ")


def test_sloppy(tmp_path: Path) -> None:
    """With -s unknown options are passed over, known ones are not; a comma in a value stays in it."""
    words = ["s3://b/d", str(tmp_path), "-s", "-f", "-o"]
    assert main([*words, r"colour=red,region=a\,b"]) == 0
    assert main([*words, "colour=red,cache_limit=much"]) == 1


def test_a_mount_that_fails(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """32 for everything that is no usage, and the reason in one line."""
    assert main(["s3://b/d", str(tmp_path / "missing"), "-o", f"cache_dir={tmp_path / 'cache'}"]) == 32
    assert "mkdir -p" in capsys.readouterr().err
