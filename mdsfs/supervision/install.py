"""Writes and removes what makes a mount a service: its configuration, the units, their user, a drop-in for the cache.

Owns which file goes where. The units are those of `systemd/`, with the path of the program put in: systemd looks for
it in a few places only, and a virtual environment is none of them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mdsfs.errors import ServiceError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Service", "hidden", "install", "program", "uninstall", "units_folder"]

CONFIGURATIONS = "etc/mdsfs"
UNITS = ("mdsfs-engine@.service", "mdsfs@.service")
# What goes with the units, by the folder it comes from and goes to.
OTHERS = ("sysusers.d/mdsfs.conf", "tmpfiles.d/mdsfs.conf")
USER = "mdsfs"
# Seconds that a stop waits for the users of the mount, where nothing else is said.
WAIT = 60


@dataclass(frozen=True, slots=True)
class Service:
    """One mount as a service. `settings` are texts by key, as a configuration file has them."""

    name: str
    settings: Mapping[str, str | bool] = field(default_factory=dict)
    root: Path = Path("/")
    credentials: str | None = None
    """An AWS credentials file, to be copied where the units look for it."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", self.name):
            raise UsageError(f"a service's name has letters, digits, dots, dashes and underscores, not {self.name!r}")

    @property
    def unit(self) -> str:
        return f"mdsfs@{self.name}.service"

    @property
    def engine_unit(self) -> str:
        return f"mdsfs-engine@{self.name}.service"

    @property
    def configuration(self) -> Path:
        return self.root / CONFIGURATIONS / f"{self.name}.toml"

    @property
    def drop_in(self) -> Path:
        return self.root / f"etc/systemd/system/{self.engine_unit}.d/cache.conf"

    @property
    def own_cache(self) -> Path:
        """The cache that the units make where the configuration names none."""
        return self.root / f"var/cache/mdsfs-service/{self.name}"

    def is_live(self) -> bool:
        """Whether this is about the running system, not about a tree to be booted later."""
        return self.root == Path("/")


def units_folder() -> Path:
    """Where the units are: in the source tree, or where the installed distribution has put them."""
    places = (
        Path(__file__).resolve().parents[2] / "systemd",
        Path(sysconfig.get_path("data")) / "share/mdsfs/systemd",
    )
    for place in places:
        if (place / UNITS[0]).exists():
            return place
    raise ServiceError(f"the units are missing, they should be in {places[-1]}: install mdsfs again")


def program() -> str:
    """How this very mdsfs is started, with an absolute path."""
    beside = Path(sys.executable).with_name("mdsfs")
    found = str(beside) if beside.exists() else shutil.which("mdsfs")
    return os.path.abspath(found) if found else f"{sys.executable} -m mdsfs"


def hidden(paths: Iterable[str]) -> str | None:
    """The first path that ProtectHome= of the units hides, if any."""
    return next((path for path in paths if path.startswith(("/home/", "/root/", "/run/user/"))), None)


def install(service: Service, *, start: bool = True) -> None:
    """Write everything, then enable the mount and start it; returns when it answers reads.

    Raises ServiceError where a configuration of this name exists, for anybody but root, and if systemd refuses.
    """
    _check_root(service)
    if service.configuration.exists():
        raise ServiceError(f"{service.configuration} exists: edit it and restart {service.unit}, or uninstall it first")
    _write_units(service.root)
    if service.is_live():
        _call("systemd-sysusers", "mdsfs.conf")
        _call("systemd-tmpfiles", "--create", "mdsfs.conf")
    service.configuration.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    _write(service.configuration, _configuration(service), 0o640)
    if service.is_live():
        shutil.chown(service.configuration, "root", USER)
    if service.credentials is not None:
        _write(service.configuration.with_suffix(".credentials"), Path(service.credentials).read_text(), 0o600)
    _make_folders(service)
    if start and service.is_live():
        _call("systemctl", "daemon-reload")
        _call("systemctl", "enable", "--now", service.unit, what=f"see journalctl -u {service.unit}")


def uninstall(service: Service, *, purge: bool = False) -> list[str]:
    """Stop and remove; with the last service the units go too. Returns what was left on purpose.

    The cache stays unless `purge`; files with secrets always do, and a cache folder that somebody chose.
    """
    _check_root(service)
    if not service.configuration.exists():
        raise ServiceError(f"there is no service {service.name}: {service.configuration} does not exist")
    if service.is_live():
        _call("systemctl", "disable", "--now", service.unit, service.engine_unit)
    service.configuration.unlink()
    shutil.rmtree(service.drop_in.parent, ignore_errors=True)
    if purge:
        shutil.rmtree(service.own_cache, ignore_errors=True)
    if not any(service.configuration.parent.glob("*.toml")):
        for path in _unit_files(service.root).values():
            path.unlink(missing_ok=True)
    if service.is_live():
        _call("systemctl", "daemon-reload")
    secrets = [service.configuration.with_suffix(suffix) for suffix in (".credentials", ".env")]
    return [str(path) for path in (*secrets, service.own_cache) if path.exists()]


def _check_root(service: Service) -> None:
    if not service.is_live():
        return
    if os.geteuid() != 0:
        raise ServiceError("only root may change the services of this host: use sudo")
    if place := hidden([program().split()[0], os.path.realpath(sys.executable)]):
        raise ServiceError(f"services do not see {place}: install mdsfs outside of homes, in /opt or /usr/local")
    if not os.path.isdir("/run/systemd/system"):
        raise ServiceError("systemd is not running here: use --root DIR to write the files into a tree that it boots")


def _unit_files(root: Path) -> dict[str, Path]:
    """Where each file of the units' folder goes."""
    return {name: root / "etc/systemd/system" / name for name in UNITS} | {name: root / "etc" / name for name in OTHERS}


def _write_units(root: Path) -> None:
    folder, path = units_folder(), program()
    for name, to in _unit_files(root).items():
        text = (folder / name).read_text()
        text = re.sub(r"(/usr/bin/env |(?<=exec ))mdsfs ", f"{path} ", text)
        _write(to, text, 0o644)


def _configuration(service: Service) -> str:
    lines = [f"# Written by mdsfs install-service. After a change: systemctl restart {service.unit}"]
    lines += [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in service.settings.items()]
    lines += ["", "[umount]", f"wait = {WAIT}  # seconds that a stop waits for those who use the mount"]
    return "\n".join(lines) + "\n"


def _make_folders(service: Service) -> None:
    mountpoint = service.root / str(service.settings["mountpoint"]).lstrip("/")
    if not os.path.ismount(mountpoint):
        mountpoint.mkdir(parents=True, exist_ok=True)
    chosen = service.settings.get("cache_dir")
    if not chosen:
        return
    cache = service.root / str(chosen).lstrip("/")
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    if service.is_live():
        shutil.chown(cache, USER, USER)
    # The engine sees the whole file system read-only, but for its own folders.
    _write(service.drop_in, f"[Service]\nReadWritePaths={chosen}\n", 0o644)


def _write(path: Path, text: str, mode: int) -> None:
    """Whole or not at all, with its mode from the first moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with open(fd, "w") as file:
        os.fchmod(fd, mode)
        file.write(text)
    new.rename(path)


def _call(*command: str, what: str = "") -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ServiceError(f"{command[0]} is missing: this host has no systemd") from None
    if done.returncode:
        said = done.stderr.strip().splitlines()
        reason = said[0] if said else f"status {done.returncode}"
        raise ServiceError(f"{' '.join(command)}: {reason}{'; ' + what if what else ''}")
