"""A mount as a service of a real systemd: boot, crashes, hangs, restarts, stops."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.mount.host import until, wait_for
from tests.mount.test_end_to_end import drop_pages
from tests.servers.base import ACCESS, SECRET

from .conftest import ENGINE, UNIT

if TYPE_CHECKING:
    from .conftest import World

pytestmark = [pytest.mark.mounted, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]


def warm(world: World) -> int:
    """All shards are in the cache; what the store has sent until now."""
    world.settled()
    world.read_all()
    # bytes can be read before their fill has ended, and only then has it said on disk that they are good
    until(lambda: world.status().get("fills", {}).get("running") == 0)
    assert {os.getxattr(world.file(name), "user.mdsfs.state") for name in world.raw} == {b"complete"}
    return world.sent()


def cold_pages(world: World) -> None:
    """The kernel forgets what it has read, so that reading asks the mount."""
    for name in world.raw:
        drop_pages(world.file(name))


def kill(world: World, unit: str) -> int:
    """kill -9 of a unit's main process; how often systemd had restarted the unit before."""
    pid, restarts = world.machine.pid(unit), restarts_of(world, unit)
    ended = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    wait_for(ended)
    return restarts


def restarts_of(world: World, unit: str) -> int:
    return int(world.machine.show(unit, "NRestarts")["NRestarts"])


def test_boot_waits_for_the_network(world: World) -> None:
    """Enabled before the boot, mount and engine start when the network is there, not before, and then read."""
    assert world.before_network == {UNIT: "inactive", ENGINE: "inactive"}
    world.settled()
    world.read_all()


def test_units_are_clean(world: World) -> None:
    """systemd-analyze finds nothing to say about them, as they are shipped and as they are installed."""
    shipped = [str(path) for path in sorted((ROOT / "systemd").glob("*.service"))]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *shipped], capture_output=True, text=True, check=False
    )
    assert (done.returncode, [line for line in done.stderr.splitlines() if "mdsfs" in line]) == (0, [])
    done = world.machine.try_run("systemd-analyze", "verify", "--man=no", UNIT, ENGINE)
    ours = [line for line in done.stderr.splitlines() if "mdsfs" in line]
    assert (done.returncode, ours) == (0, [])


def test_security_is_as_documented(world: World) -> None:
    """The exposure that systemd-analyze computes is the one that the README states, or better."""
    readme = (ROOT / "systemd/README.md").read_text()
    for unit in (UNIT, ENGINE):
        stated = re.search(rf"`{unit.replace('@ds', '@NAME')}`: (\d+\.\d)", readme)
        assert stated, unit
        said = world.machine.run("systemd-analyze", "security", "--no-pager", unit)
        found = re.search(r"Overall exposure level for \S+: (\d+\.\d)", said)
        assert found, said
        assert float(found[1]) <= float(stated[1])


def test_they_run_as_their_own_user(world: World) -> None:
    """Neither process is root's; the engine has no capability, the mount the one that mounting needs."""
    world.settled()
    for unit, capabilities in ((ENGINE, 0), (UNIT, 1 << 21)):
        status = Path(f"/proc/{world.machine.pid(unit)}/status").read_text()
        assert re.search(r"^Uid:\t0\t", status, re.MULTILINE) is None
        assert int(re.findall(r"^CapEff:\t(\w+)", status, re.MULTILINE)[0], 16) == capabilities
        assert int(re.findall(r"^CapBnd:\t(\w+)", status, re.MULTILINE)[0], 16) == capabilities


def test_ready_means_readable(world: World) -> None:
    """`systemctl start` returns when the mount answers; the status says what is mounted and how full the cache is."""
    world.machine.run("systemctl", "restart", UNIT)
    assert world.file("index.json").read_bytes()
    assert f"at {world.mountpoint}" in world.machine.show(UNIT, "StatusText")["StatusText"]
    assert "of 64" in world.machine.show(ENGINE, "StatusText")["StatusText"]


def test_other_users_read(world: World) -> None:
    """With allow_other every user of the host reads; nobody writes."""
    world.settled()
    assert len(world.machine.run("cat", f"{world.mountpoint}/index.json", uid=65534)) > 0
    assert "Read-only" in world.machine.try_run("touch", f"{world.mountpoint}/x").stderr


DIRECT = """
import json
from streaming import LocalDataset
dataset = LocalDataset("/mnt/ds")
total = sum(len(sample["x"]) for sample in dataset)
clients = json.load(open("/mnt/ds/.mdsfs/status"))["clients"]
print(json.dumps([len(dataset), total, [client["uid"] for client in clients if client["kind"] == "reader"]]))
"""


def test_other_users_read_past_the_mount(world: World) -> None:
    """A training process of any user finds the service's engine behind the mount and maps its cache files."""
    world.settled()
    said = world.machine.run("mdsfs-python", "-c", DIRECT, uid=65534)
    assert json.loads(said) == [40, 40 * 60_000, [65534]]


def test_an_administrator_unmounts(world: World) -> None:
    """`umount` behind systemd's back is an orderly end: the service is over, not failed, and can be started again."""
    world.settled()
    # its own watchdog looks into it now and then
    until(lambda: world.machine.try_run("umount", world.mountpoint).returncode == 0)
    until(lambda: world.machine.show(UNIT, "ActiveState") == {"ActiveState": "inactive"}, 120)
    assert world.machine.show(UNIT, "Result") == {"Result": "success"}
    world.machine.run("systemctl", "start", UNIT)


def test_the_kernel_is_tuned(world: World) -> None:
    """`mdsfs tune` finds the mount; where /sys may be written it has set the read-ahead."""
    world.settled()
    done = world.machine.try_run("mdsfs", "tune", "--config", "/etc/mdsfs/ds.toml")
    assert re.match(r"read-ahead \d+ KiB, 256 requests at once", done.stdout), done


def test_a_killed_mount_comes_back(world: World) -> None:
    """After kill -9 systemd mounts again over the dead mountpoint, and nothing of the cache is fetched again."""
    sent = warm(world)
    before = kill(world, UNIT)
    until(lambda: restarts_of(world, UNIT) > before, 120)
    world.settled()
    cold_pages(world)
    world.read_all()
    assert world.sent() == sent


def test_a_dead_mount_is_no_empty_folder(world: World) -> None:
    """Between death and restart the mountpoint answers ENOTCONN: an empty folder would pass for an empty dataset."""
    world.settled()
    drop_in = "/run/systemd/system/mdsfs@ds.service.d/later.conf"
    world.machine.write(drop_in, "[Service]\nRestart=no\n")
    world.machine.run("systemctl", "daemon-reload")
    kill(world, UNIT)
    until(lambda: world.machine.show(UNIT, "ActiveState") == {"ActiveState": "failed"}, 120)
    assert "Transport endpoint is not connected" in world.machine.try_run("ls", world.mountpoint).stderr
    world.machine.path(drop_in).unlink()
    world.machine.run("systemctl", "daemon-reload")
    world.machine.run("systemctl", "start", UNIT)
    world.read_all()


def test_a_killed_engine_is_waited_for(world: World) -> None:
    """After kill -9 of the engine the same mount goes on, a read meanwhile waits, and nothing is fetched again."""
    sent = warm(world)
    mount = world.machine.pid(UNIT)
    before = kill(world, ENGINE)
    cold_pages(world)
    world.read_all()
    until(lambda: restarts_of(world, ENGINE) > before, 120)
    world.settled()
    world.read_all()
    assert (world.machine.pid(UNIT), world.sent()) == (mount, sent)


def test_an_engine_is_upgraded_under_its_mount(world: World) -> None:
    """`systemctl restart` of the engine alone, with other options: the mount stays, the cache stays, reads go on."""
    sent = warm(world)
    mount, toml = world.machine.pid(UNIT), world.machine.path("/etc/mdsfs/ds.toml")
    toml.write_text(toml.read_text().replace('cache_limit = "64mb"', 'cache_limit = "48mb"'))
    with ThreadPoolExecutor(1) as pool:
        restart = pool.submit(world.machine.run, "systemctl", "restart", ENGINE)
        cold_pages(world)
        world.read_all()
        restart.result()
    assert "of 48" in world.machine.show(ENGINE, "StatusText")["StatusText"]
    cold_pages(world)
    world.read_all()
    assert (world.machine.pid(UNIT), world.sent()) == (mount, sent)
    toml.write_text(toml.read_text().replace("48mb", "64mb"))
    world.machine.run("systemctl", "restart", ENGINE)


def restart_with_short_watchdogs(world: World) -> None:
    """Mount and engine as they run now have ten seconds instead of a minute; what is started later has the minute.

    On a busy machine ten seconds would end what does not hang.
    """
    drop_ins = [f"/run/systemd/system/{unit}.d/watchdog.conf" for unit in (UNIT, ENGINE)]
    for path in drop_ins:
        world.machine.write(path, "[Service]\nWatchdogSec=10s\n")
    world.machine.run("systemctl", "daemon-reload")
    world.machine.run("systemctl", "restart", ENGINE, UNIT)
    for path in drop_ins:
        world.machine.path(path).unlink()
    world.machine.run("systemctl", "daemon-reload")


def test_what_hangs_is_ended(world: World) -> None:
    """A stopped mount and a stopped engine are ended by their watchdogs; what follows reads from the warm cache."""
    sent = warm(world)
    restart_with_short_watchdogs(world)
    before = {unit: restarts_of(world, unit) for unit in (UNIT, ENGINE)}
    pids = [world.machine.pid(unit) for unit in (UNIT, ENGINE)]
    ended = [os.pidfd_open(pid) for pid in pids]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    for each in ended:
        wait_for(each)
    until(lambda: all(restarts_of(world, unit) > before[unit] for unit in before), 120)
    world.settled()
    cold_pages(world)
    world.read_all()
    assert world.sent() == sent
    for unit in (UNIT, ENGINE):
        journal = world.machine.journal(unit)
        assert "Watchdog timeout" in journal
        assert "Fatal Python error: Aborted" in journal  # and where each thread was


def test_a_stop_waits_for_a_reader(world: World) -> None:
    """A program that ends in time keeps its bytes, and the stop then unmounts cleanly."""
    world.settled()
    name, data = next(iter(world.raw.items()))
    reader = world.machine.popen(["sh", "-c", f"exec 3<{world.mountpoint}/{name}; echo open; read l; wc -c <&3"])
    assert reader.stdout is not None
    assert reader.stdin is not None
    assert reader.stdout.readline() == "open\n"
    with ThreadPoolExecutor(1) as pool:
        stop = pool.submit(world.machine.run, "systemctl", "stop", UNIT)
        until(lambda: f"waiting: {world.mountpoint} is in use by" in world.machine.journal(UNIT), 120)
        assert reader.communicate("go\n")[0] == f"{len(data)}\n"
        stop.result()
    assert world.machine.show(UNIT, "Result", "ActiveState") == {"Result": "success", "ActiveState": "inactive"}
    assert world.machine.try_run("mountpoint", "-q", world.mountpoint).returncode != 0
    world.machine.run("systemctl", "start", UNIT)


def test_a_stop_does_not_wait_for_ever(world: World) -> None:
    """A program that stays is named in the log, and loses the mount at the limit that the configuration sets."""
    world.settled()
    user = world.machine.popen(["sh", "-c", f"cd {world.mountpoint}; echo there; read line"])
    assert user.stdout is not None
    assert user.stdout.readline() == "there\n"
    toml = world.machine.path("/etc/mdsfs/ds.toml")
    toml.write_text(toml.read_text().replace("wait = 60", "wait = 1"))
    world.machine.run("systemctl", "stop", UNIT)
    toml.write_text(toml.read_text().replace("wait = 1", "wait = 60"))
    assert re.search(rf"in use by \d+ \(sh -c cd {world.mountpoint}", world.machine.journal(UNIT))
    assert world.machine.try_run("mountpoint", "-q", world.mountpoint).returncode != 0
    user.communicate("\n")
    world.machine.run("systemctl", "start", UNIT)


def test_a_source_that_is_late(world: World) -> None:
    """A mount that can't open its source is tried again until it can."""
    world.settled()
    world.machine.run("systemctl", "stop", UNIT)
    config = world.machine.path("/etc/mdsfs/ds.toml")
    right = config.read_text()
    config.write_text(right.replace('bucket/ds"', 'bucket/not-yet"'))
    before = restarts_of(world, UNIT)
    world.machine.run("systemctl", "start", "--no-block", UNIT)
    until(lambda: restarts_of(world, UNIT) > before, 120)
    config.write_text(right)
    world.settled()
    world.read_all()


def test_secrets_are_nowhere(world: World) -> None:
    """The key is in no process list, no log, no status and no configuration that is shown."""
    world.settled()
    shown = [
        world.machine.try_run("sh", "-c", "cat /proc/[0-9]*/cmdline").stdout,  # some end while it reads
        world.machine.run("journalctl", "--no-pager"),
        world.machine.run("mdsfs", "status", world.mountpoint, "--json"),
        world.machine.run("mdsfs", "config", "--config", "/etc/mdsfs/ds.toml", "--json"),
        world.machine.run("systemctl", "show", UNIT, ENGINE),
        world.machine.run("mdsfs", "status", "--cache-dir", "/var/cache/mdsfs-service/ds"),
    ]
    assert all(shown)
    assert all(SECRET not in text and ACCESS not in text for text in shown)
    assert "clients" in shown[-1]  # root's commands find the service's engine
    assert world.machine.try_run("cat", "/etc/mdsfs/ds.credentials", uid=65534).returncode != 0
