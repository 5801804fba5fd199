"""A mount that fails after it has started an engine takes that engine along, and no other."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from .harness import why_not_mountable
from .host import Host, until, write_dataset

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.mounted,
    pytest.mark.skipif(why_not_mountable() is not None, reason=str(why_not_mountable())),
]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with Host(tmp_path) as host:
        yield host


def test_a_source_that_is_not_there(host: Host, tmp_path: Path) -> None:
    """Nothing can be opened: the engine leaves with the mount instead of waiting for others."""
    assert host.mount(tmp_path / "nothing").returncode == 3
    until(lambda: not host.has_engine)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has the right to mount, and can give it up")
def test_a_kernel_that_refuses(host: Host, tmp_path: Path) -> None:
    """The source was opened, and mounting is not permitted: the engine leaves as well."""
    write_dataset(tmp_path / "data", 10)
    command = host._command("mount", tmp_path / "data", host.mountpoint, "--cache-dir", host.cache)
    powerless = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
    done = subprocess.run([*powerless, *command], env=host.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 9, done
    until(lambda: not host.has_engine)


def test_an_engine_in_use_stays(host: Host, tmp_path: Path) -> None:
    """Another mount of the same cache keeps its engine, and goes on reading."""
    raw = write_dataset(tmp_path / "data", 10)
    mount = host.mounted(tmp_path / "data")
    engine = host.status()["engine"]["pid"]
    (tmp_path / "other").mkdir()
    cache = ("--cache-dir", host.cache, "--cache-limit", host.limit)
    assert host.run("mount", tmp_path / "nothing", tmp_path / "other", *cache).returncode == 3
    assert all((mount / name).read_bytes() == data for name, data in raw.items())
    assert host.status()["engine"]["pid"] == engine


def test_no_engine_is_started_where_none_may_be(host: Host, tmp_path: Path) -> None:
    """With --no-spawn a mount uses the engine that runs, or says that none does."""
    done = host.mount(tmp_path / "nothing", "--no-spawn")
    assert (done.returncode, "mdsfs engine" in done.stderr) == (11, True)
    assert not host.has_engine
