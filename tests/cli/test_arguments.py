"""How option values and `-o` lists are read."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdsfs.cli import arguments
from mdsfs.errors import UsageError
from streaming.sizes import format_size, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable

KNOWN = frozenset({"allow-other", "uid", "cache-dir"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4096", 4096),
        ("10b", 10),
        ("64mb", 64 << 20),
        ("64MB", 64 << 20),
        ("64MiB", 64 << 20),
        ("64m", 64 << 20),
        ("1.5 GiB", 3 << 29),
        (" 1 kb ", 1024),
        ("2TiB", 2 << 40),
        ("0", 0),
        (".5kb", 512),
    ],
)
def test_sizes(text: str, expected: int) -> None:
    """Every usual spelling, as powers of 1024."""
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "abc", "-1", "1xb", "1 2", "mb", "1e6", "٣mb", "0x10", "inf"])
def test_sizes_that_are_none(text: str) -> None:
    """Anything else is an error that quotes the text."""
    with pytest.raises(ValueError, match="expected a size"):
        parse_size(text)


@given(st.integers(0, 1 << 60))
def test_shown_sizes_are_near_the_truth(size: int) -> None:
    """What is shown can be read again, and is right to two digits or so."""
    again = parse_size(format_size(size))
    assert abs(again - size) <= max(1, size * 0.006)


@pytest.mark.parametrize(
    ("reader", "text", "expected"),
    [
        (arguments.seconds, "1.5", 1.5),
        (arguments.seconds, "30s", 30.0),
        (arguments.positive_int, "7", 7),
        (arguments.user, "root", 0),
        (arguments.user, "1234", 1234),
        (arguments.group, "root", 0),
        (arguments.mode, "0640", 0o440),
        (arguments.mode, "755", 0o555),
    ],
)
def test_values(reader: Callable[[str], object], text: str, expected: object) -> None:
    """Seconds, counts, owners and modes; bits for writing are dropped."""
    assert reader(text) == expected


@pytest.mark.parametrize(
    ("reader", "text"),
    [
        (arguments.size, "0"),
        (arguments.size, "-1"),
        (arguments.size, "abc"),
        (arguments.seconds, "0"),
        (arguments.seconds, "nan"),
        (arguments.seconds, "soon"),
        (arguments.positive_int, "0"),
        (arguments.positive_int, "1.5"),
        (arguments.user, "no such user"),
        (arguments.group, "no such group"),
        (arguments.mode, "999"),
        (arguments.mode, "rwx"),
    ],
)
def test_values_that_are_none(reader: Callable[[str], object], text: str) -> None:
    """Anything else is refused with what was expected."""
    with pytest.raises(argparse.ArgumentTypeError):
        reader(text)


def test_mount_options_become_long_options() -> None:
    """Underscores and dashes are alike; what mount(8) or fstab put there is passed over."""
    lists = ["allow_other,ro,_netdev", "uid=5,x-systemd.automount,nofail,cache-dir=/a"]
    assert arguments.expand_mount_options(lists, KNOWN) == ["--allow-other", "--uid=5", "--cache-dir=/a"]


def test_commas_in_mount_options() -> None:
    """Quotes and backslashes keep a comma in its value."""
    assert arguments.split_mount_options(r'a=1\,2,b="3,4",,c') == ["a=1,2", "b=3,4", "c"]


@pytest.mark.parametrize("text", ["nonsense", "suid", "exec", "dev", "help"])
def test_mount_options_that_are_refused(text: str) -> None:
    """Unknown options, and those that a mount of ours never has, are errors."""
    with pytest.raises(UsageError, match=text):
        arguments.expand_mount_options([text], KNOWN)


def test_default_cache_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's cache folder; for root the system's."""
    if os.geteuid() == 0:
        assert str(arguments.default_cache_dir()) == "/var/cache/mdsfs"
        return
    monkeypatch.setenv("XDG_CACHE_HOME", "/some/where")
    assert str(arguments.default_cache_dir()) == "/some/where/mdsfs"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert str(arguments.default_cache_dir()).endswith("/.cache/mdsfs")
