"""Completion and man pages come from the parsers, and the programs that read them understand them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mdsfs.cli.main import COMMANDS, main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script(tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> Path:
    """The completion of the shell that the test is about."""
    assert main(["completion", request.param]) == 0
    (tmp_path / "completion").write_text(capsys.readouterr().out)
    return tmp_path / "completion"


@pytest.mark.parametrize("script", ["bash"], indirect=True)
@pytest.mark.parametrize(
    ("words", "expected"),
    [("mdsfs umo", "umount"), ("mdsfs mount --cache-l", "--cache-limit"), ("mdsfs mount --verify sh", "shard")],
)
def test_bash_completes(script: Path, words: str, expected: str) -> None:
    """Commands, options and the values of options."""
    count = len(words.split()) - 1
    function = "$(complete -p mdsfs | sed 's/.*-F \\([^ ]*\\).*/\\1/')"
    call = f"source {script}; COMP_WORDS=({words}); COMP_CWORD={count}; {function}"
    done = subprocess.run(
        ["bash", "-c", f"{call}; echo ${{COMPREPLY[@]}}"], capture_output=True, text=True, check=True, cwd=script.parent
    )
    assert done.stdout.split() == [expected]


@pytest.mark.parametrize("script", ["zsh", "fish"], indirect=True)
def test_other_shells_take_it(script: Path, request: pytest.FixtureRequest) -> None:
    """zsh and fish find no fault in theirs, where they are installed."""
    shell = request.node.callspec.params["script"]
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    option = {"zsh": "-n", "fish": "--no-execute"}[shell]
    done = subprocess.run([shell, option, str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_man_pages(tmp_path: Path) -> None:
    """One page per command and one of all; each names its command and keeps the lines of its examples."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/man.py"), str(tmp_path)],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name for path in tmp_path.iterdir()} == {"mdsfs.1", *(f"mdsfs-{name}.1" for name in COMMANDS)}
    page = (tmp_path / "mdsfs-umount.1").read_text()
    assert page.startswith('.TH MDSFS\\-UMOUNT "1"')
    assert "\n  mdsfs umount /mnt/ds \\-\\-wait 30\n" in page
    overview = (tmp_path / "mdsfs.1").read_text()
    assert "--read-timeout" not in overview.replace("\\", "")
    assert "exit codes:" in overview
