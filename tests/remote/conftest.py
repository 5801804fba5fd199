"""Every kind of remote as one fixture, with raw put and delete that bypass the code under test."""

from __future__ import annotations

import itertools
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from streaming.remote import Remote, RemoteOptions, open_remote
from tests.servers import FaultProxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.servers import StorageServer

SERVERS = ("moto", "rclone", "nginx", pytest.param("radosgw", marks=[pytest.mark.exact, pytest.mark.slow]))
_numbers = itertools.count()


@dataclass(frozen=True)
class Store:
    """A remote, and the truth behind it."""

    kind: str
    remote: Remote
    put: Callable[[str, bytes], None]
    delete: Callable[[str], None]
    lists: bool = True


def quick(**more: Any) -> RemoteOptions:
    """The environment's options with few attempts and short pauses; a server that is merely slow is waited for."""
    times = {"connect_timeout": 60.0, "read_timeout": 60.0, "total_timeout": 120.0, "attempts": 3, "retry_pause": 0.01}
    return RemoteOptions.from_environment(**(times | more))


def on_directory(kind: str, folder: Path) -> Store:
    """A directory as a remote, by path or by file:// URL."""

    def put(key: str, data: bytes) -> None:
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        # two within a tick of the kernel's clock must not look like one
        os.utime(path, ns=(0, time.time_ns() + next(_numbers)))

    url = folder.as_uri() if kind == "file" else str(folder)
    return Store(kind, open_remote(url, quick()), put, lambda key: (folder / key).unlink())


def on_server(server: StorageServer, monkeypatch: pytest.MonkeyPatch, endpoint: str | None = None) -> Store:
    """A prefix of its own on a server, perhaps through a proxy."""
    for name, value in server.variables_for(endpoint or server.endpoint).items():
        monkeypatch.setenv(name, value)
    prefix = f"case {next(_numbers)}+é/data"
    remote = open_remote(f"s3://{server.bucket}/{prefix}", quick())
    return Store(
        server.name,
        remote,
        lambda key, data: server.put(f"{prefix}/{key}", data),
        lambda key: server.delete(f"{prefix}/{key}"),
        server.lists,
    )


@pytest.fixture(params=["local", "file", *SERVERS])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The same promises on every kind of remote."""
    if request.param in ("local", "file"):
        return on_directory(request.param, tmp_path)
    return on_server(request.getfixturevalue(request.param), monkeypatch)


@pytest.fixture(params=["moto", "rclone", "nginx"])
def faulty(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Store, FaultProxy]]:
    """A server behind the proxy."""
    server: StorageServer = request.getfixturevalue(request.param)
    with FaultProxy(server.endpoint) as proxy:
        yield on_server(server, monkeypatch, proxy.endpoint), proxy
