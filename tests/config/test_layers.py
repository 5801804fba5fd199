"""Where an option's value comes from: file < environment < command line, and what is refused on the way."""

from __future__ import annotations

import json
import tomllib
from typing import TYPE_CHECKING, Any

import pytest

from mdsfs.cli.main import build_parser, main

if TYPE_CHECKING:
    from pathlib import Path

FILE = """\
source = "s3://bucket/dataset"
mountpoint = "/mnt/ds"
cache_limit = "1GiB"
allow-other = true
threads = 4
file_mode = "0440"

[engine]
processes = 2
threads = 8

[umount]
wait = 60
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    """The path of a configuration file."""
    (tmp_path / "ds.toml").write_text(FILE)
    return str(tmp_path / "ds.toml")


def parsed(*words: str) -> Any:
    """What the parser hands to a command."""
    return build_parser().parse_args(words)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line of a usage error."""
    assert main(words) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err


def test_a_file_gives_what_flags_would(config: str) -> None:
    """Values of the file are read like flags: sizes, modes, truths; positionals too."""
    args = parsed("mount", "--config", config)
    assert (args.source, args.mountpoint) == ("s3://bucket/dataset", "/mnt/ds")
    assert (args.cache_limit, args.allow_other, args.threads, args.file_mode) == (1 << 30, True, 4, 0o440)
    assert args.read_timeout == 60


def test_tables_are_for_their_command(config: str) -> None:
    """A table's keys win over the top's, for that command alone."""
    assert parsed("engine", "--config", config).threads == 8
    assert parsed("engine", "--config", config).processes == 2
    umount = parsed("umount", "--config", config)
    assert (umount.mountpoint, umount.wait) == ("/mnt/ds", 60)


def test_flags_win_over_environment_over_file(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each layer wins over the one before, option by option, and `origins` says which it was."""
    monkeypatch.setenv("MDSFS_CACHE_LIMIT", "2GiB")
    monkeypatch.setenv("MDSFS_THREADS", "5")
    args = parsed("mount", "--config", config, "--threads", "6")
    assert (args.cache_limit, args.threads) == (2 << 30, 6)
    assert args.origins["threads"] == "command line"
    assert args.origins["cache_limit"] == "environment MDSFS_CACHE_LIMIT"
    assert args.origins["file_mode"] == f"file {config}"
    assert "read_timeout" not in args.origins


def test_the_environment_can_say_no(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A truth of the file is taken back by a variable; an empty variable says nothing."""
    monkeypatch.setenv("MDSFS_ALLOW_OTHER", "false")
    monkeypatch.setenv("MDSFS_CACHE_LIMIT", "")
    args = parsed("mount", "--config", config)
    assert (args.allow_other, args.cache_limit) == (False, 1 << 30)


def test_variables_of_others_win_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What AWS tools read from the environment is not overruled by a file; our own variable is."""
    (tmp_path / "c.toml").write_text('source = "s3://b/d"\nmountpoint = "/m"\nendpoint_url = "http://file"\n')
    words = ("mount", "--config", str(tmp_path / "c.toml"))
    monkeypatch.setenv("S3_ENDPOINT_URL", "http://theirs")
    assert parsed(*words).endpoint_url is None  # left to whoever opens the store
    monkeypatch.setenv("MDSFS_ENDPOINT_URL", "http://ours")
    assert parsed(*words).endpoint_url == "http://ours"


def test_mount_options_are_flags(config: str) -> None:
    """What stands in `-o` wins over the file, which may itself be named there."""
    args = parsed("mount", "-o", f"config={config},threads=7,ro", "s3://other/one", "/mnt/other")
    assert (args.threads, args.source, args.allow_other) == (7, "s3://other/one", True)


def test_positionals_come_together(capsys: pytest.CaptureFixture[str], config: str) -> None:
    """Half of them on the command line and half from the file is refused: it is always a mistake."""
    assert "MOUNTPOINT" in refused(capsys, "mount", "--config", config, "/data")
    assert "SOURCE, MOUNTPOINT" in refused(capsys, "mount")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("cache_limt = 5", "did you mean cache_limit?"),
        ("nonsense = 5", "unknown key nonsense"),
        ('aws_secret_access_key = "x"', "no secrets here"),
        ('cache_limit = "much"', "cache_limit"),
        ('allow_other = "maybe"', "true or false"),
        ("threads = true", "expected a value"),
        ('verify = "none"', "verify"),
        ("source = []", "expected a string"),
        ("threads = ", "not TOML"),
        ("[umount]\ncache_limit = 5", "unknown key cache_limit"),
    ],
)
def test_files_that_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, what: str) -> None:
    """One line that names the file, the key and what was expected."""
    (tmp_path / "bad.toml").write_text(text)
    err = refused(capsys, "mount", "--config", str(tmp_path / "bad.toml"))
    assert what in err
    assert "bad.toml" in err


def test_bad_variables_are_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that can't be read is an error that names it."""
    monkeypatch.setenv("MDSFS_THREADS", "many")
    assert "MDSFS_THREADS" in refused(capsys, "engine")
    monkeypatch.delenv("MDSFS_THREADS")
    monkeypatch.setenv("MDSFS_CONFIG", "/no/such.toml")
    assert "/no/such.toml" in refused(capsys, "engine")


def test_config_shows_values_and_origins(
    capsys: pytest.CaptureFixture[str], config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As JSON by command; as text in TOML that means the same."""
    monkeypatch.setenv("MDSFS_READ_TIMEOUT", "9")
    assert main(["config", "--config", config, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["mount"]["read_timeout"] == {"value": 9.0, "origin": "environment MDSFS_READ_TIMEOUT"}
    assert document["mount"]["file_mode"] == {"value": "0440", "origin": f"file {config}"}
    assert document["engine"]["threads"]["value"] == 8
    assert document["engine"]["verify"] == {"value": "transport", "origin": "default"}
    assert main(["config", "--config", config]) == 0
    shown = tomllib.loads(capsys.readouterr().out)
    assert shown["source"] == "s3://bucket/dataset"
    assert (shown["mount"]["threads"], shown["engine"]["threads"]) == (4, 8)


def test_config_shows_no_secrets(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of the store are named, passwords in URLs are left out."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    monkeypatch.setenv("S3_ENDPOINT_URL", "http://me:hush@store:9000")
    for words in (["config"], ["config", "--json"]):
        assert main(words) == 0
        out = capsys.readouterr().out
        assert "hush" not in out
        assert "AWS_SECRET_ACCESS_KEY" in out
        assert "store:9000" in out
