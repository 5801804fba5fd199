"""Ceph's radosgw with one monitor and one in-memory OSD: exact S3 semantics, twelve seconds to start."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

from tests.servers.base import ACCESS, SECRET, Child, StorageServer, Unavailable, clean_environment, free_port

PROGRAMS = ("radosgw", "ceph-mon", "ceph-osd", "ceph", "ceph-authtool", "monmaptool", "radosgw-admin")
PACKAGES = ("radosgw", "ceph-mon", "ceph-osd", "ceph-common")
CONFIG = """
[global]
fsid = 11111111-2222-3333-4444-555555555555
keyring = {home}/keyring
mon host = [v2:127.0.0.1:{mon2}/0,v1:127.0.0.1:{mon1}/0]
mon initial members = a
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind ipv6 = false
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd crush chooseleaf type = 0
mon max pg per osd = 1000
mon data avail crit = 1
run dir = {home}/run
admin socket = {home}/run/$name.asok
log file = {home}/log/$name.log
mon data = {home}/mon.a
osd data = {home}/osd.0
osd objectstore = memstore
memstore device bytes = 2147483648
osd class load list = *
osd class default list = *
[client.rgw.a]
rgw frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw enable usage log = false
rgw enable ops log = false
"""


def install() -> None:
    """Install Ceph's packages where that is possible; raises Unavailable with the reason."""
    if all(shutil.which(program) for program in PROGRAMS):
        return
    if os.getuid() != 0:
        raise Unavailable("radosgw is not installed, and only root can install it")
    command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *PACKAGES]
    done = subprocess.run(
        command, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Unavailable(f"radosgw can't be installed: {done.stderr.strip().splitlines()[-1:]}")


class RadosGateway(StorageServer):
    """The reference for S3 semantics among the servers that install everywhere."""

    name = "radosgw"

    def start(self) -> None:
        install()
        self._home = home = Path(tempfile.mkdtemp(prefix="mdsfs-rgw-"))
        self._children: list[Child] = []
        for name in ("mon.a", "osd.0", "run", "log"):
            (home / name).mkdir()
        port, mon2, mon1 = free_port(), free_port(), free_port()
        self.endpoint = f"http://127.0.0.1:{port}"
        (home / "ceph.conf").write_text(CONFIG.format(home=home, port=port, mon1=mon1, mon2=mon2))
        self._environment = clean_environment(CEPH_CONF=str(home / "ceph.conf"))
        try:
            self._boot(port, mon1, mon2)
        except BaseException:
            self.stop()
            raise

    def _boot(self, port: int, mon1: int, mon2: int) -> None:
        home = self._home
        fsid = "11111111-2222-3333-4444-555555555555"
        address = f"[v2:127.0.0.1:{mon2},v1:127.0.0.1:{mon1}]"
        self._run("monmaptool", "--create", "--addv", "a", address, "--fsid", fsid, str(home / "monmap"))
        keyring = str(home / "keyring")
        self._run("ceph-authtool", keyring, "--create-keyring", "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
        for name in ("client.admin", "client.rgw.a", "osd.0"):
            caps = [word for daemon in ("mon", "osd", "mgr") for word in ("--cap", daemon, "allow *")]
            self._run("ceph-authtool", keyring, "--gen-key", "-n", name, *caps)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", str(home / "monmap"), "--keyring", keyring)
        self._spawn("ceph-mon", "-i", "a", "-f")
        self._children[-1].wait_ready(lambda: self._answers("ceph", "osd", "create"), 60)
        self._run("ceph", "auth", "import", "-i", keyring)
        self._run("ceph-osd", "-i", "0", "--mkfs")
        self._run("ceph", "osd", "crush", "add", "osd.0", "1.0", "root=default", "host=h0")
        self._spawn("ceph-osd", "-i", "0", "-f")
        self._spawn("radosgw", "-n", "client.rgw.a", "-f")
        user = ["user", "create", "--uid=lab", "--display-name=lab", f"--access-key={ACCESS}", f"--secret-key={SECRET}"]
        self._run("radosgw-admin", "-n", "client.rgw.a", *user)
        self._children[-1].wait_ready(lambda: socket.create_connection(("127.0.0.1", port), 1).close(), 60)
        client = self.client()
        client.create_bucket(Bucket=self.bucket)
        client.close()

    def _run(self, *command: str) -> None:
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise RuntimeError(f"{command[0]}: {done.stderr[-500:]}")

    def _answers(self, *command: str) -> None:
        try:
            done = subprocess.run(command, env=self._environment, capture_output=True, timeout=5, check=False)
        except subprocess.TimeoutExpired as error:
            raise OSError(str(error)) from error
        if done.returncode:
            raise OSError(done.returncode)

    def _spawn(self, *command: str) -> None:
        self._children.append(Child(list(command), self._home / "log" / f"{command[0]}.out", self._environment))

    def stop(self) -> None:
        for child in reversed(self._children):
            child.stop()
        shutil.rmtree(self._home, ignore_errors=True)
