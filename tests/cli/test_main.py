"""The command line as a user meets it: help, one-line errors, exit codes. No mount and no engine is needed here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mdsfs.cli.main import COMMANDS, EXIT_CODES, main
from mdsfs.cli.status import render
from streaming.errors import StreamingError

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]


def failing(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> tuple[int, str]:
    """Exit code and message of a command that must fail with exactly one line."""
    code = main([str(word) for word in argv])
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("mdsfs: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return code, err


@pytest.fixture
def mountpoint(tmp_path: Path) -> Path:
    (tmp_path / "mnt").mkdir()
    return tmp_path / "mnt"


def test_errors_of_usage(capsys: pytest.CaptureFixture[str]) -> None:
    """What argparse refuses is one line and 2."""
    for argv in ([], ["nonsense"], ["mount"], ["mount", "a"], ["mount", "a", "b", "--nonsense"], ["umount"]):
        code, err = failing(capsys, *argv)
        assert code == 2
        assert "--help" in err


@pytest.mark.parametrize("limit", ["0", "-1", "abc", "1e3", ""])
def test_cache_limits_that_are_none(capsys: pytest.CaptureFixture[str], mountpoint: Path, limit: str) -> None:
    """A limit that is not a size above zero is an error of usage that quotes it."""
    code, err = failing(capsys, "mount", "/src", mountpoint, f"--cache-limit={limit}")
    assert code == 2
    assert repr(limit) in err


def test_mountpoints_that_are_none(capsys: pytest.CaptureFixture[str], mountpoint: Path, tmp_path: Path) -> None:
    """Missing, not a directory, not empty: 8, and what to do."""
    cache = f"--cache-dir={tmp_path / 'cache'}"
    (mountpoint / "something").write_text("")
    for path, what in ((tmp_path / "no", "mkdir"), (mountpoint / "something", "directory"), (mountpoint, "not empty")):
        code, err = failing(capsys, "mount", "/src", path, cache)
        assert (code, what in err) == (8, True)
    assert not (tmp_path / "cache").exists()


def test_cache_and_mountpoint_inside_each_other(
    capsys: pytest.CaptureFixture[str], mountpoint: Path, tmp_path: Path
) -> None:
    """A cache inside its mountpoint, by any spelling, or the other way round: 7."""
    (tmp_path / "link").symlink_to(mountpoint)
    for cache in (mountpoint, mountpoint / "cache", tmp_path / "link" / "x" / ".." / "cache", tmp_path):
        code, err = failing(capsys, "mount", "/src", mountpoint, f"--cache-dir={cache}")
        assert (code, "--cache-dir" in err) == (7, True)
    code, _ = failing(capsys, "mount", mountpoint / "src", mountpoint, f"--cache-dir={tmp_path / 'cache'}")
    assert code == 8


def test_mount_options_are_checked(capsys: pytest.CaptureFixture[str], mountpoint: Path) -> None:
    """An unknown `-o` is named."""
    code, err = failing(capsys, "mount", "/src", mountpoint, "-o", "ro,colour=red")
    assert code == 2
    assert "colour" in err


def test_umount_of_what_is_not_mounted(capsys: pytest.CaptureFixture[str], mountpoint: Path) -> None:
    """A plain directory, and somebody else's mount, are refused with 8."""
    assert failing(capsys, "umount", mountpoint)[0] == 8
    code, err = failing(capsys, "umount", "/proc")
    assert (code, "proc" in err) == (8, True)


def test_status_of_nothing(capsys: pytest.CaptureFixture[str], mountpoint: Path, tmp_path: Path) -> None:
    """Not a mount: 8. No engine: 11, and how to start one."""
    assert failing(capsys, "status", mountpoint)[0] == 8
    code, err = failing(capsys, "status", f"--cache-dir={tmp_path}")
    assert (code, "mdsfs engine" in err) == (11, True)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(capsys: pytest.CaptureFixture[str], command: str) -> None:
    """Every command's help ends with a command line that can be copied."""
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert re.search(rf"examples?:\n  mdsfs {command} \S", capsys.readouterr().out)


def test_exit_codes_are_documented(capsys: pytest.CaptureFixture[str]) -> None:
    """Each error's exit code stands in the help."""

    def all_errors(cls: type[StreamingError]) -> Iterator[type[StreamingError]]:
        yield cls
        for child in cls.__subclasses__():
            yield from all_errors(child)

    documented = {int(number) for number in re.findall(r"(?:^|\s{2,})(\d+)  ", EXIT_CODES)}
    assert {error.exit_code for error in all_errors(StreamingError)} <= documented
    with pytest.raises(SystemExit):
        main(["--help"])
    assert EXIT_CODES.strip() in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """The distribution's version on one line."""
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert re.fullmatch(r"mdsfs \S+\n", capsys.readouterr().out)


def test_status_table() -> None:
    """Sizes get units, lists a line per entry, absent values a dash."""
    document = {
        "cache": {"limit_bytes": 64 << 20, "resident_bytes": 0},
        "reads": {"hits": 3},
        "mounts": [{"mountpoint": "/mnt/ds", "pid": 5}],
        "nothing": [],
        "error": None,
    }
    assert render(document).splitlines() == [
        "cache.limit     64.0 MiB",
        "cache.resident  0 B",
        "reads.hits      3",
        "mounts[0]       mountpoint=/mnt/ds  pid=5",
        "nothing         none",
        "error           –",
    ]


@pytest.mark.mounted
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may hide /dev/fuse from a process")
def test_no_fuse_device(mountpoint: Path, tmp_path: Path) -> None:
    """Without /dev/fuse: 9, naming it."""
    mount = f"{sys.executable} -m mdsfs mount {tmp_path} {mountpoint} --cache-dir {tmp_path / 'cache'}"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f"mount -t tmpfs none /dev && exec {mount}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 9
    assert done.stderr.startswith("mdsfs: /dev/fuse is missing")
    assert done.stderr.count("\n") == 1
