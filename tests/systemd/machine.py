"""A machine with systemd as PID 1: systemd-nspawn over an overlay of this one's root, gone without a trace afterwards.

It shares the network of the tests (their servers listen on loopback) and the folder `host`, seen inside as /mnt/host.
Inside, `mdsfs` is this source tree under a Python that every user may run.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.mount.host import until

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 180
TARGET = "mdsfs-test.target"
# Where the base interpreter is inside: its own place may be a home, which services do not see.
PYTHON = "/opt/mdsfs-test-python"


def why_not() -> str | None:
    """Why no machine can be booted here."""
    if os.geteuid() != 0:
        return "only root can boot a machine"
    for tool in ("systemd-nspawn", "nsenter", "fusermount3"):
        if shutil.which(tool) is None:
            return f"{tool} is missing (packages systemd-container, fuse3)"
    if os.stat(ROOT).st_dev != os.stat("/").st_dev or ROOT.is_relative_to("/tmp"):
        return f"{ROOT} is not on the root filesystem, of which the machine has a copy; its /tmp is its own"
    with tempfile.TemporaryDirectory(prefix="mdsfs-machine-", dir="/dev/shm") as folder:
        probe = f"mount -t overlay overlay -o lowerdir=/,upperdir={folder}/up,workdir={folder}/wrk {folder}/root"
        for name in ("up", "wrk", "root"):
            os.mkdir(f"{folder}/{name}")
        done = subprocess.run(["unshare", "--mount", "sh", "-c", probe], capture_output=True, text=True, check=False)
    if done.returncode:
        return f"no overlay of / can be mounted: {done.stderr.strip()}"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse is missing or not accessible"
    return None


class Machine:
    """A context manager: `boot` may be called once within it; everything has ended and is unmounted after it."""

    def __init__(self, folder: Path) -> None:
        self.host = folder / "host"
        self.cache = folder / "cache"
        self._fuse = folder / "fuse"
        self._console = folder / "console"
        self._overlay = Path(tempfile.mkdtemp(prefix="mdsfs-machine-", dir="/dev/shm"))
        self._name = f"mdsfs-test-{os.getpid()}"
        self.root = self._overlay / "root"
        self._process: subprocess.Popen[bytes] | None = None
        self._cgroups = [folder / self._name for folder in _own_cgroups()]
        self.leader = 0

    def __enter__(self) -> Self:
        for path in (self.host, self.cache, self.root, self._overlay / "up", self._overlay / "wrk"):
            path.mkdir()
        self.host.chmod(0o755)
        self.cache.chmod(0o755)
        os.mknod(self._fuse, 0o020666, os.stat("/dev/fuse").st_rdev)
        self._fuse.chmod(0o666)  # as udev makes it; this machine's own may be root's alone
        options = f"lowerdir=/,upperdir={self._overlay}/up,workdir={self._overlay}/wrk"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, self.root], check=True)
        self._furnish()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._inside("systemctl", "--no-block", "exit", "0")
                self._process.wait(20)
            left = self._children()
            self._process.kill()
            self._process.wait()
            for pid in left:  # an init that did not listen is not ended by the end of nspawn
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        # The kernel lets go of a process's files a moment after the process.
        until(lambda: subprocess.run(["umount", self.root], capture_output=True, check=False).returncode == 0)
        shutil.rmtree(self._overlay)
        shutil.rmtree(Path("/run/systemd/nspawn/propagate") / self._name, ignore_errors=True)
        for top in self._cgroups:
            for folder, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):  # something in it has not ended
                    os.rmdir(folder)

    def _furnish(self) -> None:
        """Nothing of this machine's own services, an `mdsfs` that every user can run, and a target to boot into."""
        self.write("/etc/machine-id", "5d5f0000000000000000000000006d64\n")
        self.write("/etc/fstab", "")
        packages = os.pathsep.join(
            [str(ROOT), *dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))]
        )
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        environment = f"LD_LIBRARY_PATH={PYTHON}/lib PYTHONPATH={packages} PYTHONDONTWRITEBYTECODE=1"
        helper = "-c 'import sys; from mdsfs.cli.mount_helper import main; sys.exit(main())'"
        for name, start in (("bin/mdsfs", "-m mdsfs"), ("bin/mdsfs-python", ""), ("sbin/mount.mdsfs", helper)):
            text = f'#!/bin/sh\nexec env {environment} {PYTHON}/bin/python{version} {start} "$@"\n'
            self.write(f"/usr/local/{name}", text, 0o755)
        for name in ("mount.mdsfs", "mount.fuse.mdsfs"):
            (self.root / "sbin" / name).symlink_to("/usr/local/sbin/mount.mdsfs")
        self.write(
            f"/etc/systemd/system/{TARGET}", "[Unit]\nRequires=basic.target\nAfter=basic.target\nAllowIsolate=yes\n"
        )
        (self.root / PYTHON.lstrip("/")).mkdir(parents=True)

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """A file inside, before the boot or after it."""
        place = (Path(f"/proc/{self.leader}/root") if self.leader else self.root) / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        place.write_text(text)
        place.chmod(mode)

    def boot(self) -> None:
        """Start PID 1; returns when it listens. What it starts then is under way."""
        binds = [f"--bind={self._fuse}:/dev/fuse", f"--bind={self.host}:/mnt/host"]
        binds += [f"--bind={self.cache}:/var/cache/mdsfs-service", f"--bind-ro={sys.base_prefix}:{PYTHON}"]
        if os.path.exists("/dev/autofs"):
            binds.append("--bind=/dev/autofs")
        command = ["systemd-nspawn", "-q", "-D", str(self.root), f"--machine={self._name}", "--console=pipe"]
        command += ["--register=no", "--keep-unit"]
        # It makes groups of fixed names below the one that it is started in: another machine's must not be the same.
        for folder in self._cgroups:
            folder.mkdir()
        into = "".join(f"echo $$ > {folder}/cgroup.procs && " for folder in self._cgroups) + 'exec "$@"'
        in_groups = ["sh", "-c", into, "sh", "setpriv", "--pdeathsig", "TERM"]
        with self._console.open("wb") as console:
            self._process = subprocess.Popen(
                [*in_groups, *command, *binds, "--boot", f"systemd.unit={TARGET}"],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )
        until(self._answers, SECONDS)

    def _answers(self) -> bool:
        """Whether PID 1 listens. On the way to it nspawn has children that do not last."""
        assert self._process is not None
        assert self._process.poll() is None, self._console.read_text()
        self.leader = next((pid for pid in self._children() if _inner_pid(pid) == 1), 0)
        return bool(self.leader) and self._inside("systemctl", "show", "--property=Version").returncode == 0

    def _children(self) -> list[int]:
        assert self._process is not None
        try:
            text = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        except OSError:  # it has ended
            return []
        return [int(pid) for pid in text.split()]

    def _inside(self, *command: str) -> subprocess.CompletedProcess[str]:
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return subprocess.run(
            ["nsenter", "-t", str(self.leader), "-a", "env", "-i", f"PATH={path}", "LC_ALL=C.UTF-8", *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )

    def try_run(self, *command: str, uid: int = 0) -> subprocess.CompletedProcess[str]:
        """A command inside, to its end, as some user."""
        if uid:
            command = ("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", *command)
        return self._inside(*command)

    def run(self, *command: str, uid: int = 0) -> str:
        """The output of a command that must succeed."""
        done = self.try_run(*command, uid=uid)
        assert done.returncode == 0, (done, self.failures())
        return done.stdout

    def show(self, unit: str, *names: str) -> dict[str, str]:
        """Properties of a unit."""
        lines = self.run("systemctl", "show", unit, f"--property={','.join(names)}").splitlines()
        return dict(line.split("=", 1) for line in lines)

    def pid(self, unit: str) -> int:
        """The main process as this machine numbers it (0 if none): for the signals of the tests."""
        inner = int(self.show(unit, "MainPID")["MainPID"])
        return next((pid for pid in self._descendants() if _inner_pid(pid) == inner), 0) if inner else 0

    def _descendants(self) -> list[int]:
        found: list[int] = []
        waiting = [self.leader]
        while waiting:
            pid = waiting.pop()
            found.append(pid)
            with contextlib.suppress(OSError):
                waiting += [
                    int(child)
                    for task in Path(f"/proc/{pid}/task").iterdir()
                    for child in (task / "children").read_text().split()
                ]
        return found

    def journal(self, unit: str) -> str:
        """What a unit has logged so far."""
        self.run("journalctl", "--sync")
        return self.run("journalctl", "--no-pager", "--output=cat", "--unit", unit)

    def failures(self) -> str:
        """For the message of a test that fails: the last lines of the journal."""
        return self._inside("journalctl", "--no-pager", "--lines=60").stdout

    def path(self, inside: str) -> Path:
        """A path inside, as the tests can open it."""
        return Path(f"/proc/{self.leader}/root") / inside.lstrip("/")

    def popen(self, command: Sequence[str]) -> subprocess.Popen[str]:
        """A process inside that goes on: it speaks through pipes."""
        return subprocess.Popen(
            ["nsenter", "-t", str(self.leader), "-a", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )


def _own_cgroups() -> list[Path]:
    """Our own control group in the hierarchies in which systemd keeps its services."""
    found = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        places = {"name=systemd": ["/sys/fs/cgroup/systemd"], "": ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]}
        found += [Path(place + path) for place in places.get(controllers, [])]
    return [folder for folder in found if (folder / "cgroup.procs").exists()]


def _inner_pid(pid: int) -> int:
    """What a process is called in its own namespace, 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return int(next((line for line in status.splitlines() if line.startswith("NSpid:")), "0").split()[-1])
