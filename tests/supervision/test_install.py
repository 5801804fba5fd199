"""What install-service writes and uninstall-service removes, in a tree that no systemd has booted."""

from __future__ import annotations

import re
import stat
import tomllib
from pathlib import Path

import pytest

from mdsfs.cli.main import main
from mdsfs.supervision.install import hidden, program, units_folder

ROOT = Path(__file__).resolve().parents[2]


def install(root: Path, *more: str) -> int:
    words = ["--source", "s3://b/d", "--mountpoint", "/mnt/ds", "--cache-limit", "5gb", "--allow-other"]
    return main(["install-service", "ds", "--root", str(root), *words, *more])


def test_what_is_written(tmp_path: Path) -> None:
    """A configuration that mounts take, units with this program's own path, and a mountpoint."""
    assert install(tmp_path) == 0
    configuration = tmp_path / "etc/mdsfs/ds.toml"
    assert stat.S_IMODE(configuration.stat().st_mode) == 0o640
    found = tomllib.loads(configuration.read_text())
    assert found["umount"] == {"wait": 60}
    assert (found["source"], found["cache_limit"], found["allow_other"]) == ("s3://b/d", "5gb", True)
    for unit in ("mdsfs@.service", "mdsfs-engine@.service"):
        text = (tmp_path / "etc/systemd/system" / unit).read_text()
        assert f"={program()} " in text
        assert not re.search(r"^Exec.*(env|exec) mdsfs ", text, re.MULTILINE)
    assert (tmp_path / "mnt/ds").is_dir()
    assert main(["config", "--config", str(configuration)]) == 0


def test_a_cache_of_its_own(tmp_path: Path) -> None:
    """A cache elsewhere is made, closed to others, and named to the engine's sandbox."""
    assert install(tmp_path, "--cache-dir", "/nvme/cache") == 0
    assert stat.S_IMODE((tmp_path / "nvme/cache").stat().st_mode) == 0o700
    drop_in = tmp_path / "etc/systemd/system/mdsfs-engine@ds.service.d/cache.conf"
    assert "ReadWritePaths=/nvme/cache" in drop_in.read_text()


def test_credentials_are_copied_for_root_alone(tmp_path: Path) -> None:
    """They go beside the configuration, not into it."""
    (tmp_path / "keys").write_text("[default]\naws_secret_access_key=hush\n")
    assert install(tmp_path / "root", "--credentials-file", str(tmp_path / "keys")) == 0
    copied = tmp_path / "root/etc/mdsfs/ds.credentials"
    assert (stat.S_IMODE(copied.stat().st_mode), "hush" in copied.read_text()) == (0o600, True)
    assert "credentials" not in (tmp_path / "root/etc/mdsfs/ds.toml").read_text()


def test_what_is_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Everything that was written but for secrets, which are named."""
    install(tmp_path, "--cache-dir", "/nvme/cache")
    (tmp_path / "etc/mdsfs/ds.env").write_text("A=b")
    assert main(["uninstall-service", "ds", "--root", str(tmp_path)]) == 0
    assert f"left: {tmp_path}/etc/mdsfs/ds.env" in capsys.readouterr().out
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"etc/mdsfs/ds.env"}


@pytest.mark.parametrize(
    ("words", "code", "what"),
    [
        (["a/b", "--source", "x", "--mountpoint", "/m"], 2, "a/b"),
        (["ds", "--source", "x"], 2, "--mountpoint"),
        (["ds", "--source", "x", "--mountpoint", "/m", "--cache-limit", "much"], 2, "much"),
        (["ds", "--source", "x", "--mountpoint", "/m", "--verify", "none"], 2, "none"),
    ],
)
def test_what_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, what: str
) -> None:
    """Names that are no unit's, options that are none: nothing is written."""
    assert main(["install-service", "--root", str(tmp_path), *words]) == code
    assert what in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_second_time_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A configuration is never overwritten; what is not there can't be removed."""
    install(tmp_path)
    assert install(tmp_path) == 12
    assert "uninstall" in capsys.readouterr().err
    assert main(["uninstall-service", "other", "--root", str(tmp_path)]) == 12


def test_programs_that_services_do_not_see() -> None:
    """One in a home is found before anything is written."""
    assert hidden(["/opt/mdsfs/bin/mdsfs", "/usr/bin/python3"]) is None
    assert hidden(["/opt/mdsfs/bin/mdsfs", "/root/.pyenv/bin/python"]) == "/root/.pyenv/bin/python"


def test_examples_are_valid(capsys: pytest.CaptureFixture[str]) -> None:
    """Every example configuration is one that mount and engine take."""
    examples = sorted((ROOT / "systemd/examples").glob("*.toml"))
    assert len(examples) >= 3
    for example in examples:
        assert main(["config", "--config", str(example)]) == 0
        assert 'source = "' in capsys.readouterr().out
    assert units_folder() == ROOT / "systemd"
