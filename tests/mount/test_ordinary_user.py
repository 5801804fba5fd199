"""An ordinary user mounts through fusermount3: run as root, which lends the user a /dev/fuse of its own namespace."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .harness import ROOT, why_not_mountable
from .host import Host, write_dataset

if TYPE_CHECKING:
    from collections.abc import Iterator

# fusermount3 wants a user with a name.
UID = 65534


def drop(*command: str, home: str = "/nonexistent") -> list[str]:
    """A command line as that user, with nothing of our environment."""
    path = os.pathsep.join([str(ROOT), *site.getsitepackages()])
    environment = [f"PYTHONPATH={path}", "PATH=/usr/local/bin:/usr/bin:/bin", f"HOME={home}", f"XDG_RUNTIME_DIR={home}"]
    return ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "env", "-i", *environment, *command]


def user_python() -> str | None:
    """An interpreter of our version that the user may run; root's own may be behind a closed door."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    probe = f"import sys, pyfuse3, mdsfs; assert sys.version.startswith('{version}.')"
    for python in (sys.executable, f"/usr/bin/python{version}"):
        command = drop(python, "-c", probe)
        if subprocess.run(command, cwd="/", capture_output=True, check=False).returncode == 0:
            return python
    return None


def why_not() -> str | None:
    """Why no user can be played here."""
    if os.geteuid() != 0:
        return "only root can become another user"
    if not all(map(shutil.which, ("setpriv", "unshare", "fusermount3"))):
        return "setpriv, unshare or fusermount3 is missing"
    if why := why_not_mountable():
        return why
    return None if user_python() else "no interpreter that another user can run has the libraries"


pytestmark = [pytest.mark.mounted, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]


@pytest.fixture(scope="module", autouse=True)
def umask() -> Iterator[None]:
    """What root writes here is for the user to read, whatever this machine's root is used to."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture(scope="module")
def story() -> dict[str, Any]:
    """What happened when the user did everything once."""
    folder = Path(tempfile.mkdtemp(prefix="mdsfs-user-"))
    folder.chmod(0o755)
    write_dataset(folder / "source", 20)
    (folder / "home" / "mnt").mkdir(parents=True)
    for path in (folder / "home", folder / "home" / "mnt"):
        os.chown(path, UID, UID)
    # without the copies of what others have mounted: as long as we kept them, the mounts' processes would not end
    device = 'umount -a -l -t fuse.mdsfs; mknod -m 666 $0/fuse c 10 229 && mount --bind $0/fuse /dev/fuse && exec "$@"'
    home = str(folder / "home")
    script = str(ROOT / "tests/mount/as_user.py")
    user = drop(str(user_python()), script, str(folder / "source"), home, home=home)
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", device, str(folder), *user],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    shutil.rmtree(folder)
    assert done.returncode == 0, done
    return dict(json.loads(done.stdout))


def test_a_user_mounts_and_reads(story: dict[str, Any]) -> None:
    """The mount works, its files belong to the user, and the bytes are the source's."""
    assert story["mount"]["code"] == 0, story["mount"]["err"]
    assert (story["uid"], story["owner"]) == (UID, UID)
    assert story["mount"]["code"] == 0, story["mount"]["err"]
    assert story["names"] == [".mdsfs", "index.json", "shard.00000.mds", "shard.00001.mds"]
    assert story["same"]


def test_what_the_kernel_allowed(story: dict[str, Any]) -> None:
    """A user's mount has the limits that the kernel gave it, and the status says which."""
    kernel = story["status"]["kernel"]
    assert kernel["readahead_kb"] == 128
    assert kernel["max_background"] is None or kernel["max_background"] >= 12


def test_a_user_recovers_and_unmounts(story: dict[str, Any]) -> None:
    """After kill -9 the next mount clears the dead one; umount leaves nothing."""
    assert (story["again"]["code"], story["again"]["err"]) == (0, "")
    assert (story["umount"]["code"], story["umount"]["err"]) == (0, "")
    assert story["left"] == []
    assert story["stop"]["code"] == 0


def test_what_a_user_lacks(story: dict[str, Any]) -> None:
    """No fusermount3, or no user_allow_other in /etc/fuse.conf: 9, one line that names it."""
    for key, what in (("no fusermount3", "fusermount3"), ("allow other", "user_allow_other")):
        assert story[key]["code"] == 9
        assert what in story[key]["err"]
        assert story[key]["err"].count("\n") == 1


def test_root_mounts_for_others() -> None:
    """With allow_other another user reads root's mount; without it that user is shut out."""
    folder = Path(tempfile.mkdtemp(prefix="mdsfs-other-"))
    folder.chmod(0o755)
    write_dataset(folder / "source", 10)
    for options, expected in ((["-o", "allow_other"], 0), ([], 1)):
        with Host(folder) as host:
            mount = host.mounted(folder / "source", *options)
            done = subprocess.run(
                drop("cmp", str(mount / "index.json"), str(folder / "source/index.json")), check=False
            )
            assert min(done.returncode, 1) == expected
        host.mountpoint.rmdir()
    shutil.rmtree(folder)
