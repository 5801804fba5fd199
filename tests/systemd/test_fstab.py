"""mount(8), fstab and mount units on a real systemd, and users without root."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from tests.mount.host import until
from tests.servers.base import ACCESS, SECRET

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .conftest import World
    from .machine import Machine

pytestmark = [pytest.mark.mounted, pytest.mark.slow]

POINT = "/mnt/f"
# fusermount3 wants a user with a name.
USER, OTHER = 65534, 1


@pytest.fixture(scope="module")
def machine(world: World) -> Iterator[Machine]:
    """The machine with a mountpoint and credentials that root's commands use."""
    machine = world.machine
    machine.run("mkdir", "-p", POINT, "/var/lib/f")
    machine.write(
        "/etc/f.credentials", f"[default]\naws_access_key_id={ACCESS}\naws_secret_access_key={SECRET}\n", 0o600
    )
    yield machine
    machine.try_run("umount", POINT)
    machine.write("/etc/fstab", "")


def options(world: World) -> str:
    """What follows `-o`, as a person writes it."""
    store = f"endpoint_url={world.proxy.endpoint},region=us-east-1,credentials_file=/etc/f.credentials"
    return f"{store},cache_dir=/var/lib/f/cache,cache_limit=64mb,allow_other,_netdev,nofail"


def source(world: World) -> str:
    return re.search(r'source = "(.*)"', world.machine.path("/etc/mdsfs/ds.toml").read_text())[1]  # type: ignore[index]


def mounted(machine: Machine) -> bool:
    return machine.try_run("mountpoint", "-q", POINT).returncode == 0


@pytest.mark.parametrize("kind", ["mdsfs", "fuse.mdsfs"])
def test_mount_and_umount(world: World, machine: Machine, kind: str) -> None:
    """`mount -t` mounts by either name; findmnt and df show it; `umount` ends it."""
    machine.run("mount", "-t", kind, source(world), POINT, "-o", options(world))
    found = json.loads(machine.run("findmnt", "--json", "-t", "fuse.mdsfs", POINT))["filesystems"][0]
    assert (found["target"], found["source"], found["fstype"]) == (POINT, source(world), "fuse.mdsfs")
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(found["options"].split(","))
    size, free = machine.run("df", "--output=used,avail", "-B1", POINT).split()[2:]
    assert int(size) >= sum(map(len, world.raw.values()))
    assert free == "0"
    for name, data in world.raw.items():
        assert machine.path(f"{POINT}/{name}").read_bytes() == data
    machine.run("umount", POINT)
    assert not mounted(machine)


def test_exit_codes_of_mount(world: World, machine: Machine) -> None:
    """mount(8) passes on ours: 1 for usage, 32 for a mount that failed; one line says why."""
    usage = machine.try_run("mount", "-t", "mdsfs", source(world), POINT, "-o", "colour=red")
    failed = machine.try_run("mount", "-t", "mdsfs", "/no/such/source", POINT, "-o", options(world))
    assert (usage.returncode, failed.returncode) == (1, 32)
    assert "colour" in usage.stderr
    assert "/no/such/source" in failed.stderr


def test_a_line_of_fstab(world: World, machine: Machine) -> None:
    """findmnt finds the line right; `mount POINT` and `umount POINT` use it; systemd makes a unit of it that works."""
    machine.write("/etc/fstab", f"{source(world)} {POINT} mdsfs {options(world)},noauto 0 0\n")
    verified = machine.try_run("findmnt", "--verify")
    assert "0 parse errors, 0 errors" in verified.stdout + verified.stderr, verified
    machine.run("mount", POINT)
    assert mounted(machine)
    machine.run("umount", POINT)
    # systemd has seen that it is gone: starting what it takes for mounted would do nothing
    until(lambda: machine.show("mnt-f.mount", "ActiveState") == {"ActiveState": "inactive"})
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", "mnt-f.mount")
    assert machine.path(f"{POINT}/index.json").read_bytes()
    machine.run("systemctl", "stop", "mnt-f.mount")
    assert not mounted(machine)


def test_mounting_on_first_use(world: World, machine: Machine) -> None:
    """With x-systemd.automount nothing is mounted until somebody looks."""
    if machine.try_run("test", "-c", "/dev/autofs").returncode:
        pytest.skip("/dev/autofs is missing")
    machine.write("/etc/fstab", f"{source(world)} {POINT} mdsfs {options(world)},noauto,x-systemd.automount 0 0\n")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", "mnt-f.automount")
    assert "fuse.mdsfs" not in machine.run("findmnt", POINT)
    assert len(machine.run("cat", f"{POINT}/index.json")) > 0
    assert "fuse.mdsfs" in machine.run("findmnt", POINT)
    machine.run("systemctl", "stop", "mnt-f.automount", "mnt-f.mount")
    assert not mounted(machine)


def test_a_user_mounts_for_itself_or_for_all(world: World, machine: Machine) -> None:
    """Without root: another user is refused, and served once /etc/fuse.conf permits allow_other and the user asks."""
    home = "/var/lib/user"
    machine.run("install", "-d", "-o", str(USER), "-g", str(USER), home, f"{home}/mnt")
    machine.run("cp", "-r", "/mnt/ds", f"{home}/data")
    machine.run("chmod", "-R", "a+rX", f"{home}/data")
    machine.write("/etc/fuse.conf", "user_allow_other\n")
    mount = ["mdsfs", "mount", f"{home}/data", f"{home}/mnt", "--cache-dir", f"{home}/cache", "--cache-limit", "64mb"]
    as_user = ("env", f"HOME={home}", f"XDG_RUNTIME_DIR={home}")
    for extra, expected in (([], False), (["--allow-other"], True)):
        machine.run(*as_user, *mount, *extra, uid=USER)
        assert machine.run("cat", f"{home}/mnt/index.json", uid=USER)
        assert (machine.try_run("cat", f"{home}/mnt/index.json", uid=OTHER).returncode == 0) == expected
        machine.run(*as_user, "mdsfs", "umount", f"{home}/mnt", uid=USER)
        machine.run(*as_user, "mdsfs", "engine", "--cache-dir", f"{home}/cache", "--stop", uid=USER)


def test_install_and_uninstall(world: World, machine: Machine) -> None:
    """One command makes a service of a folder, without credentials, and one removes it again with its cache."""
    machine.run("mkdir", "-p", "/srv/data")
    machine.run("sh", "-c", "cp /mnt/ds/* /srv/data && chmod -R a+rX /srv/data")
    install = ["mdsfs", "install-service", "two", "--source", "/srv/data", "--mountpoint", "/mnt/two", "--allow-other"]
    said = machine.run(*install, "--cache-limit", "64mb", "--cache-dir", "/srv/cache")
    assert said == "mdsfs@two.service: /srv/data is mounted at /mnt/two\n"
    assert machine.run("cat", "/mnt/two/index.json", uid=OTHER)
    assert machine.run("systemctl", "is-enabled", "mdsfs@two.service") == "enabled\n"
    assert "exists" in machine.try_run(*install).stderr
    machine.run("mdsfs", "uninstall-service", "two", "--purge")
    assert not machine.path("/etc/mdsfs/two.toml").exists()
    assert machine.try_run("systemctl", "is-active", "mdsfs@two.service", "mdsfs-engine@two.service").returncode
    assert machine.path("/etc/systemd/system/mdsfs@.service").exists()  # the other service needs it
    until(lambda: world.machine.show("mdsfs@ds.service", "ActiveState") == {"ActiveState": "active"})


def test_two_mounts_share_a_cache(world: World, machine: Machine) -> None:
    """As the README says: the second mount's own engine is masked, and the first one's serves both.

    The second has its key from an environment file: the engine takes it for the same reader.
    """
    first = world.machine.path("/etc/mdsfs/ds.toml").read_text()
    machine.run("mkdir", "-p", "/mnt/second")
    second = first.replace("/mnt/ds", "/mnt/second") + '\n[mount]\ncache_dir = "/var/cache/mdsfs-service/ds"\n'
    machine.write("/etc/mdsfs/second.toml", second)
    machine.write("/etc/mdsfs/second.env", f"AWS_ACCESS_KEY_ID={ACCESS}\nAWS_SECRET_ACCESS_KEY={SECRET}\n")
    drop_in = "[Unit]\nWants=mdsfs-engine@ds.service\nAfter=mdsfs-engine@ds.service\n"
    machine.write("/etc/systemd/system/mdsfs@second.service.d/engine.conf", drop_in)
    machine.run("systemd-tmpfiles", "--create", "mdsfs.conf")  # owners of the new files
    assert machine.path("/etc/mdsfs/second.env").stat().st_mode & 0o777 == 0o600
    machine.run("systemctl", "mask", "mdsfs-engine@second.service")
    machine.run("systemctl", "start", "mdsfs@second.service")
    for name, data in world.raw.items():
        assert machine.path(f"/mnt/second/{name}").read_bytes() == data
    status = json.loads(machine.path("/mnt/second/.mdsfs/status").read_bytes())
    assert {mount["mountpoint"] for mount in status["mounts"]} == {"/mnt/ds", "/mnt/second"}
    machine.run("systemctl", "stop", "mdsfs@second.service")
    machine.run("mdsfs", "uninstall-service", "second")
