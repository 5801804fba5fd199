"""Rates: memory, disk, store, and a real engine cold and warm, so that a user sees which of them is the bottleneck.

Everything is measured in a folder of its own beside the cache, with an engine of its own, and removed afterwards.
"""

from __future__ import annotations

import contextlib
import os
import queue
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streaming.engine.client import EngineClient
from streaming.engine.spawn import EngineOptions
from streaming.errors import StreamingError
from streaming.remote import open_remote
from streaming.sizes import format_size

from .cache import place_for
from .findings import Finding, fail, ok, warn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streaming.mds.index import Index
    from streaming.remote.options import RemoteOptions

__all__ = ["Rate", "judge", "measure"]

MIB = 1 << 20
PIECE = 1 * MIB
MEMORY = 64 * MIB
# At most so much is written, however fast the disk is.
MOST_WRITTEN = 512 * MIB
READERS = 8
SLOW_DISK = 200 * MIB


@dataclass(frozen=True, slots=True)
class Rate:
    """One measurement. `seconds_per_read`: of one reader, where reads were counted."""

    name: str
    bytes_per_second: float
    what: str
    seconds_per_read: float = 0.0

    def shown(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def measure(
    cache_dir: Path, source: str | None, options: RemoteOptions, index: Index | None, seconds: float
) -> list[Rate]:
    """What can be measured here; each takes about so many seconds. Without a source: memory and disk."""
    found = [_synthetic(seconds)]
    place = place_for(cache_dir)
    if not os.access(place, os.W_OK):
        return found
    folder = Path(tempfile.mkdtemp(prefix=".mdsfs-doctor-", dir=place))
    try:
        found += _disk(folder, seconds)
        if source is not None and index is not None and index.shards:
            found += _store(source, options, index, seconds)
            found += _engine(folder, source, options, index, seconds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return found


def judge(rates: list[Rate]) -> list[Finding]:
    """What the rates say."""
    by_name = {each.name: each for each in rates}
    found = []
    disk = by_name.get("disk, write")
    if disk is not None:
        said = f"takes {format_size(disk.bytes_per_second)}/s"
        if disk.bytes_per_second < SLOW_DISK:
            found.append(warn("disk speed", said, "put the cache on a faster disk (NVMe)"))
        else:
            found.append(ok("disk speed", said))
    if "cold" in by_name and by_name["cold"].bytes_per_second == 0:
        found.append(fail("engine", by_name["cold"].what, "see the message"))
    elif "store" in by_name and "cold" in by_name and disk is not None:
        found.append(_bottleneck(by_name["store"], disk, by_name["cold"]))
    return found


def _bottleneck(store: Rate, disk: Rate, cold: Rate) -> Finding:
    # Cold reads can be no faster than the slower of the two; where they are much slower, it is what lies between.
    slower = min(store, disk, key=lambda each: each.bytes_per_second)
    said = f"cold reads run at {format_size(cold.bytes_per_second)}/s"
    if cold.bytes_per_second < 0.5 * slower.bytes_per_second:
        return ok("bottleneck", f"{said}: neither store nor disk, but processors (decompression, hashes) or latency")
    return ok("bottleneck", f"{said}: the {'store' if slower is store else 'cache disk'} bounds them")


def _synthetic(seconds: float) -> Rate:
    """Reads of memory, in the way that the cache is read: no reader on this host can be faster."""
    fd = os.memfd_create("mdsfs-doctor", os.MFD_CLOEXEC)
    try:
        os.write(fd, os.urandom(PIECE) * (MEMORY // PIECE))
        buffer, reads, begun = bytearray(PIECE), 0, time.monotonic()
        while not reads or time.monotonic() - begun < min(seconds, 0.5):
            os.preadv(fd, [buffer], random.randrange(MEMORY // PIECE) * PIECE)
            reads += 1
        taken = time.monotonic() - begun
    finally:
        os.close(fd)
    return Rate("synthetic", reads * PIECE / taken, "one process copies from memory", taken / reads)


def _disk(folder: Path, seconds: float) -> Iterator[Rate]:
    path = folder / "disk"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield from _disk_rates(fd, seconds)
    except OSError as error:
        yield Rate("disk, write", 0.0, f"the cache disk takes no data: {error.strerror}")
    finally:
        os.close(fd)
        path.unlink()


def _disk_rates(fd: int, seconds: float) -> Iterator[Rate]:
    piece, written, begun = os.urandom(PIECE), 0, time.monotonic()
    while not written or (written < MOST_WRITTEN and time.monotonic() - begun < seconds):
        written += os.write(fd, piece)
        if written % (32 * MIB) == 0:
            os.fdatasync(fd)
    os.fdatasync(fd)
    taken = time.monotonic() - begun
    yield Rate("disk, write", written / taken, "one process writes to the cache's filesystem, synchronised")
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    at, begun = 0, time.monotonic()
    while not at or (at < written and time.monotonic() - begun < seconds):
        at += len(os.pread(fd, PIECE, at))
    yield Rate("disk, read", at / (time.monotonic() - begun), "one process reads it back, not from the page cache")


def _store(source: str, options: RemoteOptions, index: Index, seconds: float) -> list[Rate]:
    """Ranges of the stored objects straight from the store, as many at once as the engine would ask for."""
    remote = open_remote(source, options)

    def read(number: int, buffer: memoryview) -> int:
        shard = index.shards[number % len(index.shards)]
        info = shard.zip_data or shard.raw_data
        size = min(len(buffer), info.bytes)
        if size:
            remote.get_range(info.basename, 0, size, buffer[:size])
        return size

    return [_parallel("store", f"{READERS} requests at a time, nothing kept", read, 4 * MIB, seconds)]


def _engine(folder: Path, source: str, options: RemoteOptions, index: Index, seconds: float) -> list[Rate]:
    """Shards through an engine with an empty cache, then the same ones again, then through a mount."""
    cache = folder / "cache"
    limit = max(64 * MIB, min(4 << 30, shutil.disk_usage(folder).free // 2))
    spawn = EngineOptions(cache, limit, idle_exit=5.0, log_file=folder / "engine.log", log_level="warning")
    try:
        with EngineClient.connect(cache, spawn, client="cli") as client:
            try:
                return _through_engine(cache, source, options, index, seconds, limit, folder)
            finally:
                client.stop()
    except (StreamingError, OSError) as error:
        return [Rate("cold", 0.0, str(error))]


def _through_engine(
    cache: Path, source: str, options: RemoteOptions, index: Index, seconds: float, limit: int, folder: Path
) -> list[Rate]:
    # as many shards as fit, so that the second time finds all of them
    room, shards = limit // 2, []
    for number, shard in enumerate(index.shards):
        room -= shard.raw_data.bytes
        if room < 0:
            break
        shards.append(number)
    if not shards:
        return []
    url = source if "://" in source else os.path.abspath(source)
    read_to: list[int] = []
    with contextlib.ExitStack() as stack:
        local = threading.local()

        def reader() -> tuple[EngineClient, int]:
            if not hasattr(local, "client"):
                client = EngineClient.connect(cache, client="reader")
                stack.callback(client.close)
                local.client, local.dataset = client, client.open(url, options.identity(url)).datasets[0].dataset
            return local.client, local.dataset

        def read(number: int, buffer: memoryview) -> int:
            if number >= len(shards):
                return 0
            client, dataset = reader()
            file, size = shards[number], index.shards[shards[number]].raw_data.bytes
            with client.held(dataset, [(file, 0, size)], timeout=60.0) as wanted:
                fds = [each.fd for each in wanted.direct] or [client.file(dataset, file).fd]
                done = sum(len(os.pread(fds[0], len(buffer), at)) for at in range(0, size, len(buffer)))
                if not wanted.direct:
                    os.close(fds[0])
            read_to.append(number)
            return done

        def again(number: int, buffer: memoryview) -> int:
            return read(number % (max(read_to) + 1), buffer)

        # The first shard waits for processes to start and connections to be made: that is not what is measured.
        first = 1 if len(shards) > 1 else 0
        if first:
            read(0, memoryview(bytearray(PIECE)))
        what = f"{READERS} readers, the engine fetches, checks, writes"
        rates = [_parallel("cold", what, lambda number, buffer: read(number + first, buffer), PIECE, seconds)]
        if read_to:
            rates.append(_parallel("warm", f"{READERS} readers of what is in the cache", again, PIECE, seconds))
            rates += _through_mount(cache, url, options, index, [shards[n] for n in set(read_to)], seconds, folder)
    return rates


def _through_mount(
    cache: Path, url: str, options: RemoteOptions, index: Index, files: list[int], seconds: float, folder: Path
) -> list[Rate]:
    """What is in the cache, through FUSE; nothing where no mount is possible."""
    mountpoint = folder / "mnt"
    mountpoint.mkdir()
    mdsfs = [sys.executable, "-m", "mdsfs"]
    command = [*mdsfs, "mount", url, str(mountpoint), "--cache-dir", str(cache), "--log-level", "error"]
    for flag, value in (
        ("--endpoint-url", options.endpoint_url),
        ("--region", options.region),
        ("--profile", options.profile),
    ):
        command += [flag, value] if value else []
    command += ["--no-sign-request"] if options.anonymous else []
    command += ["--requester-pays"] if options.requester_pays else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return []

    def read(number: int, buffer: memoryview) -> int:
        path = mountpoint / index.shards[files[number % len(files)]].raw_data.basename
        got = 0
        with open(path, "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while count := file.readinto(buffer):
                got += count
        return got

    try:
        return [_parallel("warm, mount", f"{READERS} readers of the same through a mount", read, PIECE, seconds)]
    finally:
        subprocess.run([*mdsfs, "umount", str(mountpoint), "--wait", "10"], capture_output=True, check=False)


def _parallel(name: str, what: str, read: Callable[[int, memoryview], int], buffer_size: int, seconds: float) -> Rate:
    """Threads that read one thing after another (`read(number, buffer)`; 0: there is no more) for so long.

    Each reads at least one, however long a busy machine takes to start it.
    """
    numbers, lock = iter(range(1 << 62)), threading.Lock()
    total, reads, longest = 0, 0, 0.0
    errors: queue.SimpleQueue[Exception] = queue.SimpleQueue()
    begun = time.monotonic()

    def work() -> None:
        nonlocal total, reads, longest
        buffer = memoryview(bytearray(buffer_size))
        try:
            while True:
                with lock:
                    number = next(numbers)
                at = time.monotonic()
                got = read(number, buffer)
                if not got:
                    return
                with lock:
                    total, reads, longest = total + got, reads + 1, longest + time.monotonic() - at
                if time.monotonic() - begun >= seconds:
                    return
        except Exception as error:  # it belongs to the caller, who is not this thread
            errors.put(error)

    threads = [threading.Thread(target=work, name=f"{name} {number}") for number in range(READERS)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    taken = time.monotonic() - begun
    if not errors.empty():
        raise errors.get()
    return Rate(name, total / taken, what, longest / reads if reads else 0.0)
