"""Fetching into cache files: fetchers beside a bare receive-and-write loop; hashing and decompression apart.

Objects lie on nginx on the loopback address. Rounds of all contestants are interleaved; figures are medians. CPU is
what the client's processes used, in seconds per GB (1e9 bytes) written, the engine's side included.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from machine import TICKS, description

from mdsfs.engine.fetching.jobs import Job, RangeJob, StreamJob
from mdsfs.engine.fetching.pool import FetcherPool
from streaming.mds.compression import compress
from streaming.remote import RemoteOptions
from tests.servers import NginxServer

MIB = 1 << 20
SIZE = 64 * MIB
PART = 8 * MIB


def bare(port: int, names: list[str], folder: Path, threads: int) -> None:
    """The floor: sockets, one buffer a thread, pwrite."""
    left = list(reversed(names))

    def work() -> None:
        buffer = memoryview(bytearray(512 << 10))
        while left:
            name = left.pop()
            fd = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            with socket.create_connection(("127.0.0.1", port)) as sock:
                sock.sendall(f"GET /bucket/{name} HTTP/1.0\r\nHost: x\r\n\r\n".encode())
                head = b""
                while b"\r\n\r\n" not in head:
                    head += sock.recv(4096)
                at = os.pwrite(fd, head.partition(b"\r\n\r\n")[2], 0)
                while got := sock.recv_into(buffer):
                    os.pwrite(fd, buffer[:got], at)
                    at += got
            os.close(fd)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for each in workers:
        each.start()
    for each in workers:
        each.join()


def run_bare(port: int, names: list[str], folder: Path, threads: int) -> tuple[float, float]:
    """(seconds, CPU seconds) of the floor in a process of its own."""
    command = [sys.executable, __file__, "--bare", json.dumps([port, names, str(folder), threads])]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    wall, cpu = json.loads(said)
    return wall, cpu


def bare_process(text: str) -> None:
    port, names, folder, threads = json.loads(text)
    started, before = time.perf_counter(), time.process_time()
    bare(port, names, Path(folder), threads)
    print(json.dumps([time.perf_counter() - started, time.process_time() - before]))


def cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


async def fetch(pool: FetcherPool, url: str, options: RemoteOptions, jobs: dict[str, list[Job]], folder: Path) -> None:
    """All jobs at once, as the engine gives them."""

    async def one(job: Job, fd: int, left: list[int]) -> None:
        await pool.run(url, options, job, fd, on_extent=lambda *_: None)
        left.pop()
        if not left:
            os.close(fd)

    async with trio.open_nursery() as nursery:
        for name, parts in jobs.items():
            fd = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            left = [0] * len(parts)
            for job in parts:
                nursery.start_soon(one, job, fd, left)


async def contest(
    arguments: argparse.Namespace, server: NginxServer, folder: Path
) -> dict[str, list[tuple[float, float]]]:
    rng = random.Random(1)
    raw = [f"raw{n}" for n in range(arguments.objects)]
    zipped = [f"zip{n}" for n in range(arguments.objects)]
    content = b"".join(rng.randbytes(21 * MIB) + bytes(rng.choices(b"abcdefgh \n", k=MIB)) * 43 for _ in range(1))[
        :SIZE
    ]
    stored = compress("zstd:3", content)
    for name in raw:
        server.put(name, content)
    for name in zipped:
        server.put(name, stored)
    sha1 = {"sha1": hashlib.sha1(content).hexdigest()}
    jobs: dict[str, dict[str, list[Job]]] = {
        "fetchers, raw": {
            name: [RangeJob(name, None, at, at + PART, at, SIZE) for at in range(0, SIZE, PART)] for name in raw
        },
        "fetchers, raw, sha1": {name: [StreamJob(name, None, SIZE, SIZE, None, {}, sha1)] for name in raw},
        "fetchers, zstd": {name: [StreamJob(name, None, len(stored), SIZE, "zstd:3")] for name in zipped},
    }
    options = RemoteOptions(endpoint_url=server.endpoint, anonymous=True, region="us-east-1")
    pool = FetcherPool(arguments.processes, arguments.threads)
    results: dict[str, list[tuple[float, float]]] = {}
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.serve)
        for round_number in range(arguments.rounds + 1):
            figures = {"bare loop": run_bare(server.port, raw, folder, arguments.threads)}
            for name, batch in jobs.items():
                pids = [os.getpid(), *(each.process.pid for each in pool._fetchers)]
                started, before = time.perf_counter(), sum(map(cpu_of, pids))
                await fetch(pool, server.url(), options, batch, folder)
                figures[name] = time.perf_counter() - started, sum(map(cpu_of, pids)) - before
            for name, figure in figures.items():
                if round_number:  # the first warms connections and the server's cache
                    results.setdefault(name, []).append(figure)
        nursery.cancel_scope.cancel()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, default=8, help="64 MiB objects a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"), help="where objects and files lie")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--bare", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare:
        bare_process(arguments.bare)
        return
    print(json.dumps(description()))
    gigabytes = arguments.objects * SIZE / 1e9

    with tempfile.TemporaryDirectory(prefix="mdsfs-bench-", dir=arguments.folder) as name:
        folder = Path(name)
        (folder / "files").mkdir()
        folder.chmod(0o755)
        with NginxServer(folder / "root") as server:
            results = trio.run(contest, arguments, server, folder / "files")
    table = {}
    for name, figures in results.items():
        wall, cpu = (statistics.median(column) for column in zip(*figures, strict=True))
        table[name] = {"gb_s": round(gigabytes / wall, 2), "cpu_s_per_gb": round(cpu / gigabytes, 3)}
        print(f"{name:22} {gigabytes / wall:6.2f} GB/s {cpu / gigabytes:7.3f} CPU s/GB")
    ratio = table["fetchers, raw"]["cpu_s_per_gb"] / table["bare loop"]["cpu_s_per_gb"]
    print(f"CPU per GB, fetchers over bare loop: {ratio:.2f}")
    print(f"peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB")
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": description(), "results": table, "ratio": ratio}, indent=1))


if __name__ == "__main__":
    main()
