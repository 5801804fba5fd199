"""Run by an ordinary user: mounts, reads, looks, unmounts; prints what happened as JSON. See test_ordinary_user.py."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any


def mdsfs(*argv: str, **environment: str) -> dict[str, Any]:
    """One command."""
    done = subprocess.run(
        [sys.executable, "-m", "mdsfs", *argv],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return {"code": done.returncode, "out": done.stdout, "err": done.stderr}


def main(source: str, folder: str) -> dict[str, Any]:
    """All that a user does with a mount."""
    mountpoint, cache = f"{folder}/mnt", f"{folder}/cache"
    common = ("--cache-dir", cache, "--cache-limit", "64mb")
    found: dict[str, Any] = {
        "uid": os.geteuid(),
        "no fusermount3": mdsfs("mount", source, mountpoint, *common, PATH="/nonexistent"),
        "allow other": mdsfs("mount", source, mountpoint, *common, "--allow-other"),
        "mount": mdsfs("mount", source, mountpoint, *common),
    }
    if found["mount"]["code"]:
        return found
    found["names"] = sorted(os.listdir(mountpoint))
    found["owner"] = os.stat(f"{mountpoint}/index.json").st_uid
    found["same"] = all(
        (Path(mountpoint) / name).read_bytes() == (Path(source) / name).read_bytes() for name in os.listdir(source)
    )
    found["status"] = json.loads((Path(mountpoint) / ".mdsfs/status").read_bytes())["mount"]
    pid = found["status"]["pid"]
    ended = os.pidfd_open(pid)
    os.kill(pid, 9)
    select.select([ended], [], [], 60)
    found["again"] = mdsfs("mount", source, mountpoint, *common)
    found["umount"] = mdsfs("umount", mountpoint)
    found["left"] = [line for line in Path("/proc/self/mounts").read_text().splitlines() if mountpoint in line]
    found["stop"] = mdsfs("engine", "--cache-dir", cache, "--stop")
    return found


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
