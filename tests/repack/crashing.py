"""Repacks a folder again and again, each time in a process that dies at its n-th change of the destination; prints, for
every n, what the run after that found and left. Run by test_crashes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from mdsfs.repack.run import repack
from mdsfs.repack.target import Target
from streaming.remote import RemoteOptions
from streaming.remote.local import LocalRemote


class Dying(LocalRemote):
    """A folder that ends the process at its n-th change: before it, after it, or half way through a put."""

    def __init__(self, folder: Path, last: int, when: str) -> None:
        super().__init__(str(folder), folder, RemoteOptions())
        self.left, self.when = last, when
        self.put_keys: list[str] = []

    def _step(self, key: str, change: Any) -> None:
        self.left -= 1
        if self.left == 0 and self.when == "half":
            (self.root / key).parent.mkdir(parents=True, exist_ok=True)
            (self.root / key).with_name(f".{Path(key).name}.abcdefgh").write_bytes(b"half")
        if self.left == 0 and self.when != "after":
            os._exit(9)
        change()
        if self.left == 0:
            os._exit(9)

    def put(self, key: str, data: Any, *, progress: Any = None) -> None:
        self.put_keys.append(key)
        self._step(key, lambda: super(Dying, self).put(key, data, progress=progress))

    def delete(self, key: str) -> None:
        self._step(key, lambda: super(Dying, self).delete(key))


def run(source: Path, destination: Path, last: int, when: str) -> Dying:
    """One repack; `last` 0 lives."""
    remote = Dying(destination, last, when)
    repack(LocalRemote(str(source), source, RemoteOptions()), remote, Target(frame=4096), jobs=1)
    return remote


def digest(folder: Path) -> str:
    """Names and bytes of everything below a folder."""
    found = hashlib.sha1()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        found.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return found.hexdigest()


def main() -> None:
    """A line of JSON for every instant."""
    source, work = Path(sys.argv[1]), Path(sys.argv[2])
    for when in ("before", "half", "after"):
        last = 0
        while True:
            last += 1
            destination = work / f"{when}-{last}"
            if (child := os.fork()) == 0:
                run(source, destination, last, when)
                os._exit(0)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            had = sorted(str(path.relative_to(destination)) for path in destination.rglob("*") if path.is_file())
            again = run(source, destination, 0, when)
            shards = [key for key in again.put_keys if key.endswith(".zstd")]
            told = {"died": status == 9, "had": had, "put": shards, "digest": digest(destination)}
            print(json.dumps(told), flush=True)
            shutil.rmtree(destination)
            if status != 9:
                break


if __name__ == "__main__":
    main()
