"""The metrics server of a real engine: what it answers, to whom, and what becomes of it."""

from __future__ import annotations

import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.engine.conftest import MIB, ROOT, Engine, Reader, write_dataset
from tests.mount.host import until
from tests.servers.base import clean_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Start = Callable[..., Engine]

LIMIT = 16 * MIB


class Site:
    """The server of an engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.url = engine.status()["engine"]["metrics"]

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body; of an engine that is silent for a while on a loaded machine, later ones."""
        deadline = time.monotonic() + 60
        while True:
            found = self.ask_once(path, method, **headers)
            if found[0] != 503 or time.monotonic() > deadline:
                return found

    def ask_once(self, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body, whatever they are."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=60)
        try:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.headers), answer.read()
        finally:
            connection.close()

    def document(self) -> dict[str, Any]:
        """The engine's status as pages get it."""
        return dict(json.loads(self.ask("/data.json")[2])["document"])

    def metrics(self) -> dict[str, float]:
        """Samples without labels, and the sums of those with, by name."""
        _, _, body = self.ask("/metrics")
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(body.decode()):
            for each in family.samples:
                found[each.name] = found.get(each.name, 0.0) + each.value
        return found

    @property
    def pid(self) -> int:
        """The server's process: the engine's child that is no fetcher."""
        with open(f"/proc/{self.engine.process.pid}/task/{self.engine.process.pid}/children") as file:
            children = [int(pid) for pid in file.read().split()]
        for pid in children:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if b"mdsfs.metrics.server" in file.read():
                    return pid
        raise AssertionError("no metrics server runs")


@pytest.fixture
def site(start: Start) -> Site:
    return Site(start(LIMIT, "--metrics", "127.0.0.1:0"))


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The server of an engine that several tests look at and none disturbs."""
    cache = tmp_path_factory.mktemp("idle") / "cache"
    with Engine(cache, LIMIT, "--metrics", "127.0.0.1:0", env={"AWS_SECRET_ACCESS_KEY": "very-secret"}) as engine:
        yield Site(engine)


def test_metrics_follow_what_a_reader_does(site: Site, tmp_path: Path) -> None:
    """Bytes from the store, reads, shards by state and waits are those of the reads that were made."""
    data = write_dataset(tmp_path / "data", shards=2, size=2 * MIB, form="zstd")
    size = (data.folder / data.stored[0]).stat().st_size
    with site.engine.client() as client:
        reader = Reader(client, str(data.folder), data)
        reader.check(0, 0, 2 * MIB)
        # answers may be a moment old; the shard's hash is compared, and its job counted, after the read
        until(lambda: site.metrics().get("mdsfs_read_wait_seconds_count") == 1)
        until(lambda: site.metrics()["mdsfs_remote_received_bytes_total"] >= size)
        whole = {"complete": 1, "partial": 0, "absent": 1, "fetching": 0, "failed": 0}
        until(lambda: site.document()["datasets"][0]["shards"] == whole)
        found, document = site.metrics(), site.document()
        reader.close()
    assert found["mdsfs_cache_resident_bytes"] == 2 * MIB
    assert found["mdsfs_read_wait_seconds_count"] == 1
    assert [each["position"] for each in document["clients"] if each["kind"] == "reader"] == ["shard.00000.mds at 0"]


def test_the_page_needs_nothing_from_elsewhere(idle: Site) -> None:
    """One file: no address of anybody else in it, and a policy that would not let it load one."""
    status, headers, body = idle.ask("/")
    assert status == 200
    assert b"//" not in body.replace(b"http://www.w3.org/2000/svg", b"").replace(b"// ", b"")
    assert "default-src 'none'" in headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [("/nothing", "GET", 404), ("/../etc/passwd", "GET", 404), ("/metrics", "POST", 501), ("/metrics", "HEAD", 200)],
)
def test_other_requests(idle: Site, path: str, method: str, status: int) -> None:
    """Unknown paths are not found, nothing can be changed, HEAD has no body."""
    found, _, body = idle.ask(path, method)
    assert found == status
    assert method != "HEAD" or body == b""


@pytest.mark.parametrize(("host", "status"), [("localhost:1", 200), ("[::1]:9", 200), ("attacker.example", 403)])
def test_a_foreign_name_for_the_loopback_address_is_refused(idle: Site, host: str, status: int) -> None:
    """A web page whose name was pointed at 127.0.0.1 cannot read what is here."""
    assert idle.ask("/data.json", Host=host)[0] == status


def test_more_connections_than_places(site: Site) -> None:
    """Those who only connect hold a bounded number of places; whoever comes then is let go at once."""
    address = urlsplit(site.url)
    held = [socket.create_connection((str(address.hostname), int(address.port or 0))) for _ in range(17)]
    try:
        held[-1].settimeout(60)
        assert held[-1].recv(1) == b""
    finally:
        for each in held:
            each.close()
    assert site.engine.status()["engine"]["pid"] == site.engine.process.pid


def test_a_server_that_dies_is_started_again(site: Site) -> None:
    """The engine lives on, and the same address answers."""
    first = site.pid
    os.kill(first, signal.SIGKILL)
    assert site.ask("/-/healthy")[0] == 200  # the listening socket is the engine's: it waits there meanwhile
    assert site.pid != first


def test_the_server_has_no_credentials(idle: Site) -> None:
    """It talks to no store, so that it gets none of the engine's secrets."""
    with open(f"/proc/{idle.pid}/environ", "rb") as file:
        assert b"very-secret" not in file.read()
    for path in ("/metrics", "/data.json"):
        assert b"very-secret" not in idle.ask(path)[2]


def test_it_ends_with_its_engine(site: Site) -> None:
    """Killed with kill -9, the engine leaves no server behind."""
    ended = os.pidfd_open(site.pid)
    site.engine.kill()
    assert select.select([ended], [], [], 60)[0]
    os.close(ended)


def test_a_silent_engine_is_a_503(site: Site) -> None:
    """While the engine is stopped, the answer says so instead of hanging."""
    site.engine.process.send_signal(signal.SIGSTOP)
    try:
        status, _, body = site.ask_once("/metrics")
    finally:
        site.engine.process.send_signal(signal.SIGCONT)
    assert (status, b"did not answer" in body) == (503, True)
    assert site.ask("/-/healthy")[0] == 200


def test_an_address_that_is_taken(tmp_path: Path) -> None:
    """The engine does not start, and one line says why."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, "-m", "mdsfs", "engine", "--cache-dir", str(tmp_path / "c"), "--metrics", address],
            cwd=ROOT,
            env=clean_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 11
    assert done.stderr.splitlines()[-1].startswith(f"mdsfs: --metrics: cannot listen on 127.0.0.1 port {address[10:]}")
