"""Fixtures that every part of the suite shares: storage servers, the fault proxy, a clean environment."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from functools import cache
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling

from streaming.engine.address import runtime_directory
from tests.servers import (
    FaultProxy,
    MotoServer,
    NginxServer,
    RadosGateway,
    RcloneServer,
    StorageServer,
    Unavailable,
)
from tests.servers.base import FOREIGN

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# How long examples take is the machine's business: the first one of a property imports whole libraries.
hypothesis.settings.register_profile("suite", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("suite")

# The machine's own settings (certificates, profiles, regions) must not decide what a test talks to.
for _name in list(os.environ):
    if _name.startswith(FOREIGN):
        del os.environ[_name]
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
logging.getLogger("werkzeug").setLevel(logging.ERROR)  # moto logs every request


_BEFORE = pytest.StashKey[set[str]]()


def pytest_sessionstart(session: pytest.Session) -> None:
    """Note what other engines of this machine have in the runtime directory."""
    if not _is_worker(session.config):
        session.config.stash[_BEFORE] = _names(runtime_directory())


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Engines keep a lock and a log per cache directory beside their sockets: those of our short-lived ones go.

    Not by pytest-xdist's workers, one of which may end while an engine of the other one's starts; and none of a cache
    that another run of the tests, which may be under way, has in its own folder.
    """
    if _is_worker(session.config):
        return
    folder, fresh = runtime_directory(), _names(runtime_directory()) - session.config.stash[_BEFORE]
    ours = _identities(session.config._tmp_path_factory.getbasetemp()) if fresh else set()  # type: ignore[attr-defined]
    for name in sorted(fresh):
        if name.partition(".")[0] in ours and not _has_engine((folder / name).with_suffix(".sock")):
            (folder / name).unlink(missing_ok=True)


def _identities(folder: Path) -> set[str]:
    """By what engines name the files of a cache directory, for every folder below this one."""
    found = set()
    for base, _, _ in os.walk(folder):
        with contextlib.suppress(OSError):
            each = os.lstat(base)
            found.add(f"{each.st_dev:x}-{each.st_ino:x}")
    return found


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


class _ByFile(LoadScopeScheduling):  # type: ignore[misc]  # it has no types
    """A file's tests run in one process, for what they share; those that mount something all in the same.

    A test with a mount namespace of its own keeps a copy of each mount that others have at that moment: their daemons
    would not end when they unmount.
    """

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return "mounts" if "mark.mounted" in _text(self.config.rootpath / path) else path


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Whatever `--dist` says."""
    return _ByFile(config, log)


@cache
def _text(path: Path) -> str:
    return path.read_text()


def _names(folder: Path) -> set[str]:
    return set(os.listdir(folder)) if folder.is_dir() else set()


def _has_engine(path: Path) -> bool:
    """Whether somebody listens there; another run of the tests may be under way."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        return probe.connect_ex(str(path)) == 0


def _running(server: StorageServer) -> Iterator[StorageServer]:
    try:
        server.start()
    except Unavailable as reason:
        pytest.skip(str(reason))
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def moto() -> Iterator[StorageServer]:
    yield from _running(MotoServer())


@pytest.fixture(scope="session")
def rclone() -> Iterator[StorageServer]:
    yield from _running(RcloneServer())


@pytest.fixture(scope="session")
def nginx() -> Iterator[StorageServer]:
    yield from _running(NginxServer())


@pytest.fixture(scope="session")
def radosgw() -> Iterator[StorageServer]:
    yield from _running(RadosGateway())


@pytest.fixture
def proxy(rclone: StorageServer) -> Iterator[FaultProxy]:
    """A fault proxy in front of rclone; its `endpoint` goes into `rclone.variables_for`."""
    with FaultProxy(rclone.endpoint) as running:
        yield running
