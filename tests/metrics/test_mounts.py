"""What mounts and other clients tell of themselves, and how it comes out."""

from __future__ import annotations

import contextlib
import http.client
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families

from streaming.engine.client import EngineClient
from streaming.errors import ProtocolError
from tests.engine.conftest import MIB, Engine
from tests.mount.harness import why_not_mountable
from tests.mount.host import Host, until, write_dataset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Start = Callable[..., Engine]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with Host(tmp_path) as running:
        yield running


def samples(address: str, family: str) -> list[Any]:
    """Of a family of metrics; of one that is not there none."""
    found: list[bytes] = []

    def answered() -> bool:  # 503: the engine is busy
        with contextlib.closing(http.client.HTTPConnection(address, timeout=60)) as connection:
            connection.request("GET", "/metrics")
            answer = connection.getresponse()
            found.append(answer.read())
            return answer.status == 200

    until(answered)
    families = text_string_to_metric_families(found[-1].decode())
    return [sample for each in families if each.name == family for sample in each.samples]


@pytest.mark.mounted
@pytest.mark.skipif(why_not_mountable() is not None, reason=str(why_not_mountable()))
def test_a_mount_is_seen_through_its_engine(host: Host, tmp_path: Path) -> None:
    """Given to mount, --metrics is the engine's; there the kernel's calls, bytes and reads of the mount can be seen."""
    raw = write_dataset(tmp_path / "data", compression="zstd")
    mount = host.mounted(tmp_path / "data", "--metrics", "127.0.0.1:0")
    for name, data in raw.items():
        assert (mount / name).read_bytes() == data
    size = sum(map(len, raw.values()))

    def told() -> bool:
        (client,) = (each for each in host.status()["clients"] if each["kind"] == "mount")
        return bool(client.get("bytes_read", 0) >= size)

    until(told)
    address = urlsplit(host.status()["engine"]["metrics"]).netloc

    def shown() -> bool:  # what is asked for here may be a moment old
        return sum(each.value for each in samples(address, "mdsfs_mount_read_bytes")) >= size

    until(shown)
    (read,) = samples(address, "mdsfs_mount_read_bytes")
    assert read.labels == {"mountpoint": str(mount)}
    calls = {each.labels["operation"] for each in samples(address, "mdsfs_fuse_seconds")}
    assert {"read", "open", "lookup"} <= calls


@pytest.mark.parametrize(
    "report",
    [
        {"reads_at_once": "many", "timings": 7},
        {"reads_at_once": -1, "bytes_read": 1 << 80, "timings": [{"name": "x"}] * 100},
        {"timings": [[[[1]]]]},
    ],
)
def test_a_report_of_nonsense_changes_nothing(start: Start, report: dict[str, object]) -> None:
    """Figures that make no sense are left out; the client and the engine go on."""
    engine = start(4 * MIB)
    with engine.client() as client:
        client.exchange.call({"op": "report", **report})
        (shown,) = (each for each in engine.status()["clients"] if each["kind"] == "reader")
    assert not {"reads_at_once", "bytes_read"} & shown.keys()
    assert engine.status()["reads"]["at_once"] == 0


def test_an_unknown_figure_is_refused(start: Start) -> None:
    """As any unknown key of a known op."""
    engine = start(4 * MIB)
    with EngineClient.connect(engine.cache) as client, pytest.raises(ProtocolError, match="unknown key"):
        client.exchange.call({"op": "report", "colour": 1})
