"""One machine for all tests here: booted once, with a mount that was enabled before and a network that is late."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from tests.mount.host import until, write_dataset
from tests.servers import FaultProxy
from tests.servers.base import ACCESS, SECRET

from .machine import TARGET, Machine, why_not

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers import StorageServer

UNIT, ENGINE = "mdsfs@ds.service", "mdsfs-engine@ds.service"

LATE_NETWORK = """\
[Unit]
DefaultDependencies=no
Before=network-online.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'until test -e /mnt/host/online; do sleep 0.05; done'
"""


@dataclass
class World:
    """The machine, the store that it reads from, what lies there, and what was seen while it booted."""

    machine: Machine
    proxy: FaultProxy
    raw: dict[str, bytes]
    before_network: dict[str, str] = field(default_factory=dict)
    mountpoint: str = "/mnt/ds"

    def file(self, name: str) -> Path:
        """A file of the mount, as the tests can open it."""
        return self.machine.path(f"{self.mountpoint}/{name}")

    def read_all(self) -> None:
        """Every shard, with every byte right."""
        for name, data in self.raw.items():
            assert self.file(name).read_bytes() == data

    def sent(self) -> int:
        """How many bytes of shards the store has sent."""
        return self.proxy.bytes_sent("shard")

    def status(self) -> dict[str, Any]:
        """The status that the mount shows; without the engine's half where that is late."""
        document: dict[str, Any] = json.loads(self.file(".mdsfs/status").read_bytes())
        return document

    def settled(self) -> None:
        """The mount is up and its engine too."""
        until(lambda: self.machine.show(UNIT, "ActiveState") == {"ActiveState": "active"}, 120)
        until(lambda: self.machine.show(ENGINE, "ActiveState") == {"ActiveState": "active"}, 120)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, rclone: StorageServer) -> Iterator[World]:
    """A booted machine in which mdsfs@ds shows a dataset of a store that checks signatures."""
    if reason := why_not():
        pytest.skip(reason)
    before = os.umask(0o022)  # what root writes there is for other users to read
    folder = tmp_path_factory.mktemp("machine")
    raw = write_dataset(folder / "data", 40, 60_000, size_limit=1 << 20, compression="zstd")
    rclone.put_tree("ds", folder / "data")
    with FaultProxy(rclone.endpoint) as proxy, Machine(folder) as machine:
        _install(machine, proxy, rclone.url("ds"))
        machine.boot()
        found = World(machine, proxy, raw)
        until(lambda: "late-network.service" in machine.run("systemctl", "list-jobs", "--no-legend"), 60)
        for unit in (UNIT, ENGINE):
            found.before_network[unit] = machine.show(unit, "ActiveState")["ActiveState"]
        (machine.host / "online").touch()
        found.settled()
        yield found
    os.umask(before)


def _install(machine: Machine, proxy: FaultProxy, source: str) -> None:
    """What an administrator leaves on the disk before the boot."""
    from mdsfs.supervision.install import Service, install, program

    settings = {"source": source, "mountpoint": "/mnt/ds", "endpoint_url": proxy.endpoint, "region": "us-east-1"}
    install(Service("ds", {**settings, "cache_limit": "64mb", "allow_other": True}, machine.root))
    for unit in ("mdsfs@.service", "mdsfs-engine@.service"):
        path = machine.root / "etc/systemd/system" / unit
        path.write_text(path.read_text().replace(program(), "/usr/local/bin/mdsfs"))
    machine.write(
        "/etc/mdsfs/ds.credentials", f"[default]\naws_access_key_id={ACCESS}\naws_secret_access_key={SECRET}\n"
    )
    machine.write("/etc/systemd/system/late-network.service", LATE_NETWORK)
    for target, unit in (("network-online.target", "late-network.service"), (TARGET, UNIT)):
        wants = machine.root / f"etc/systemd/system/{target}.wants"
        wants.mkdir(exist_ok=True)
        (wants / unit).symlink_to(f"/etc/systemd/system/{unit.replace('@ds', '@')}")
