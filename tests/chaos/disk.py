"""A filesystem of a cache's own: what the cache takes of it, sampled all the time, and how others fill it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tests.servers import Unavailable

__all__ = ["Disk"]

INTERVAL = 0.002


@dataclass
class Disk:
    """A fresh ext4 of `size` bytes on a loop device, mounted at `place`; a context manager.

    `limit`: bytes that the cache may take. `breach` tells what was there when it took more.
    """

    name: str
    place: Path
    size: int
    limit: int
    most: int = 0
    breach: str = ""
    samples: int = 0
    _fill: int | None = None
    _filled: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _end: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self.place.mkdir()
        image = self.place.with_suffix(".image")
        image.touch()
        os.truncate(image, self.size)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
        command = ["mount", "-o", "loop", str(image), str(self.place)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Unavailable(f"a loop device can't be mounted: {done.stderr.strip()}")
        self._start = self._used()
        self._thread = threading.Thread(target=self._run, name=f"watch {self.name}")
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end.set()
        self._thread.join()
        self.empty()
        subprocess.run(["umount", "--lazy", str(self.place)], check=True)

    def _used(self) -> int:
        found = os.statvfs(self.place)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def _run(self) -> None:
        while not self._end.wait(INTERVAL):
            with self._lock:  # what fills it may not change between two looks
                self.most = max(self.most, self._used() - self._start - self._filled)
                self.samples += 1
                if self.most > self.limit and not self.breach:
                    self.breach = f"{self.most} bytes of {self.limit}: {self._contents()}"

    def _contents(self) -> str:
        """Blocks of every file, those included that are open and have no name any more."""
        paths = [str(path) for path in self.place.rglob("*")]
        for link in Path("/proc").glob("[0-9]*/fd/*"):
            with contextlib.suppress(OSError):
                target = os.readlink(link)
                if target.startswith(str(self.place)) and target.endswith("(deleted)"):
                    paths.append(str(link))
        found = {}
        for path in paths:
            with contextlib.suppress(OSError):
                entry = os.stat(path)
                found.setdefault(entry.st_ino, (entry.st_blocks * 512, path))
        largest = sorted(found.values(), reverse=True)
        return f"{sum(size for size, _ in largest)} in files: " + ", ".join(f"{path} {size}" for size, path in largest)

    def fill(self) -> int:
        """Have another file take all that is free; its bytes."""
        with self._lock:
            if self._fill is None:
                self._fill = os.open(self.place / "of-somebody-else", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            found = os.statvfs(self.place)
            free = found.f_bfree * found.f_frsize
            # the cache may be writing: what is free now need not be free in a moment
            while free >= found.f_frsize:
                with contextlib.suppress(OSError):
                    os.posix_fallocate(self._fill, self._filled, free)
                    break
                free //= 2
            self._filled = os.fstat(self._fill).st_blocks * 512
            return self._filled

    def empty(self) -> None:
        """Remove that file."""
        with self._lock:
            if self._fill is not None:
                os.ftruncate(self._fill, 0)  # at once, also while a child that is being started has the descriptor
                os.unlink(self.place / "of-somebody-else")
                os.close(self._fill)
                self._fill, self._filled = None, 0
