"""Reading through the mount and through our reader, beside s3fs and rclone mount, against one S3 server."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import random
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import machine
import numpy as np

from streaming import LocalDataset, MDSWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BIN = Path(sys.executable).parent
BUCKET, PREFIX = "bench", "raw"
SAMPLE = 32 * 1024


class Server:
    """`rclone serve s3` over a folder in memory; signed."""

    def __init__(self, root: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.key, self.secret = "BENCH", secrets.token_hex(8)
        self.url = f"http://127.0.0.1:{self.port}"
        command = [BIN / "rclone", "serve", "s3", "--config", os.devnull, "--addr", f"127.0.0.1:{self.port}"]
        command += ["--auth-key", f"{self.key},{self.secret}", "--no-checksum", "--buffer-size", "0"]
        command += ["--vfs-read-chunk-size", "off", str(root)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda: socket.create_connection(("127.0.0.1", self.port), 1).close() is None, 20, "the S3 server")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        self.environment |= {
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "S3_ENDPOINT_URL": self.url,
        }

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):
            if condition():
                return
        if time.monotonic() > deadline:
            raise SystemExit(f"bench: {what} did not come up in {seconds} s")
        time.sleep(0.02)  # foreign programs: their port or mount is all there is to look at


def unmount(mountpoint: Path) -> None:
    subprocess.run(["fusermount3", "-u", "-z", str(mountpoint)], check=False, capture_output=True)


@contextlib.contextmanager
def s3fs(server: Server, home: Path, options: list[str]) -> Iterator[tuple[Path, list[int]]]:
    mountpoint, cache = home / "mnt", home / "cache"
    mountpoint.mkdir()
    password = home / "passwd"
    password.write_text(f"{server.key}:{server.secret}")
    password.chmod(0o600)
    command = [
        "s3fs",
        f"{BUCKET}:/{PREFIX}",
        str(mountpoint),
        "-f",
        "-o",
        f"url={server.url}",
        "-o",
        "use_path_request_style",
    ]
    command += ["-o", f"passwd_file={password}", "-o", "ro", "-o", "endpoint=us-east-1"]
    if options:
        command += ["-o", f"use_cache={cache}", *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: (mountpoint / "index.json").exists(), 20, "s3fs")
        yield mountpoint, [process.pid]
    finally:
        unmount(mountpoint)
        process.terminate()
        process.wait()


@contextlib.contextmanager
def rclone(server: Server, home: Path, options: list[str]) -> Iterator[tuple[Path, list[int]]]:
    mountpoint = home / "mnt"
    mountpoint.mkdir()
    config = home / "rclone.conf"
    config.write_text(
        f"[s]\ntype=s3\nprovider=Other\nforce_path_style=true\nendpoint={server.url}\n"
        f"access_key_id={server.key}\nsecret_access_key={server.secret}\n"
    )
    command = [BIN / "rclone", "--config", config, "mount", f"s:{BUCKET}/{PREFIX}", mountpoint, "--read-only"]
    command += ["--cache-dir", str(home / "cache"), *options]
    environment = {name: value for name, value in os.environ.items() if name != "AWS_CA_BUNDLE"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        wait_until(lambda: (mountpoint / "index.json").exists(), 20, "rclone mount")
        yield mountpoint, [process.pid]
    finally:
        unmount(mountpoint)
        process.terminate()
        process.wait()


@contextlib.contextmanager
def mdsfs(server: Server, home: Path, _options: list[str]) -> Iterator[tuple[Path, list[int]]]:
    mountpoint, cache = home / "mnt", home / "cache"
    mountpoint.mkdir()
    command = [
        BIN / "mdsfs",
        "mount",
        f"s3://{BUCKET}/{PREFIX}",
        mountpoint,
        "--cache-dir",
        cache,
        "--cache-limit",
        "8gb",
    ]
    subprocess.run(command, env=server.environment, check=True)
    try:
        status = json.loads((mountpoint / ".mdsfs" / "status").read_text())
        yield mountpoint, [status["engine"]["pid"], status["mounts"][0]["pid"]]
    finally:
        subprocess.run([BIN / "mdsfs", "umount", mountpoint, "--wait", "10"], check=False, env=server.environment)
        subprocess.run(
            [BIN / "mdsfs", "engine", "--cache-dir", cache, "--stop"],
            check=False,
            env=server.environment,
            capture_output=True,
        )


def all_pids(roots: list[int]) -> list[int]:
    # the engine may be a child of the mount that started it: nobody is counted twice
    return sorted({pid for root in roots for pid in machine.family(root)})


def read_files(folder: Path) -> int:
    """Every shard once, in name order, in reads of 1 MiB into one buffer."""
    buffer, total = bytearray(1 << 20), 0
    for path in sorted(folder.glob("shard.*")):
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total += count
    return total


def read_samples(folder: Path) -> int:
    """Every sample once, in order, through our reader."""
    dataset, total = LocalDataset(str(folder)), 0
    for number in range(len(dataset)):
        total += len(dataset[number]["data"])
    return total


def random_rate(folder: Path, order: list[int]) -> list[float]:
    """Samples per second of random reads through our reader: the first pass over an order, then two more."""
    dataset, rates = LocalDataset(str(folder)), []
    for _ in range(3):
        started = time.perf_counter()
        for number in order:
            dataset[number]
        rates.append(len(order) / (time.perf_counter() - started))
    return rates


def bare_loop(server: Server, names: list[str], target: Path) -> tuple[float, float]:
    """Receive into one buffer and write: bytes/s and CPU seconds per GB of the least that any client can do."""
    import boto3
    from botocore.config import Config

    client = boto3.client(
        "s3",
        endpoint_url=server.url,
        aws_access_key_id=server.key,
        aws_secret_access_key=server.secret,
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}, signature_version="s3v4"),
    )
    urls = [
        client.generate_presigned_url("get_object", {"Bucket": BUCKET, "Key": f"{PREFIX}/{name}"}) for name in names
    ]
    buffer, total = memoryview(bytearray(1 << 20)), 0
    before, started = sum(os.times()[:2]), time.perf_counter()
    with socket.create_connection(("127.0.0.1", server.port)) as connection, target.open("wb", buffering=0) as output:
        for url in urls:
            path = url.removeprefix(server.url)
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n".encode())
            head = b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(4096)
            header, _, rest = head.partition(b"\r\n\r\n")
            if b" 200 " not in header[:16]:
                raise SystemExit(f"bench: the server answers {header[:80]!r}")
            length = next(
                int(line.split(b":")[1]) for line in header.lower().split(b"\r\n") if line.startswith(b"content-length")
            )
            output.write(rest)
            left = length - len(rest)
            while left:
                count = connection.recv_into(buffer, min(left, len(buffer)))
                output.write(buffer[:count])
                left -= count
            total += length
    return total / (time.perf_counter() - started), (sum(os.times()[:2]) - before) / (total / 1e9)


def write_dataset(folder: Path, total: int) -> None:
    rng = np.random.default_rng(5)
    with MDSWriter(columns={"data": "bytes"}, out=str(folder), size_limit="64mb") as writer:
        for _ in range(total // SAMPLE):
            writer.write({"data": rng.bytes(SAMPLE)})


CONTESTANTS: dict[str, tuple[Callable[..., contextlib.AbstractContextManager[tuple[Path, list[int]]]], list[str]]] = {
    "s3fs": (s3fs, []),
    "s3fs use_cache": (s3fs, ["-o", "parallel_count=8", "-o", "kernel_cache"]),
    "rclone mount": (rclone, []),
    "rclone mount full": (rclone, ["--vfs-cache-mode", "full"]),
    "mdsfs mount": (mdsfs, []),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=512, help="raw size of the dataset (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds (default: %(default)s)")
    parser.add_argument(
        "--dir", default=tempfile.gettempdir(), help="where caches and mounts go (default: %(default)s)"
    )
    parser.add_argument("--only", help="comma list of contestants")
    parser.add_argument("--json", help="write the measurements here")
    options = parser.parse_args()
    described = machine.description()
    print(json.dumps(described))
    chosen = options.only.split(",") if options.only else list(CONTESTANTS)
    for name in list(chosen):
        program = CONTESTANTS[name][0].__name__
        if program == "s3fs" and not shutil.which("s3fs"):
            print("note: s3fs is not installed (apt-get install s3fs): left out")
            chosen.remove(name)
    base = Path(tempfile.mkdtemp(prefix="mdsfs-bench-", dir=options.dir))
    store = Path(tempfile.mkdtemp(prefix="mdsfs-bench-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    results = machine.Results()
    try:
        source = store / BUCKET / PREFIX
        write_dataset(source, options.megabytes << 20)
        plain = base / "plain"
        shutil.copytree(source, plain)
        server = Server(store)
        size = sum(path.stat().st_size for path in source.glob("shard.*"))
        names = sorted(path.name for path in source.glob("shard.*"))
        samples = len(LocalDataset(str(source)))
        order = random.Random(3).sample(range(samples), min(samples, 8000))
        try:
            bare_loop(server, names, base / "warmup")  # the server hashes each object once: not part of anybody's time
            (base / "warmup").unlink()
            for _ in range(options.rounds):
                rate, cpu = bare_loop(server, names, base / "bare")
                (base / "bare").unlink()
                results.add("bare receive+write", "cold seq MB/s", rate / 1e6)
                results.add("bare receive+write", "CPU s/GB", cpu)
                for name in chosen:
                    program, arguments = CONTESTANTS[name]
                    for kind in ("files", "reader") if program is mdsfs else ("files",):
                        label = name if kind == "files" else "our reader, direct"
                        home = Path(tempfile.mkdtemp(dir=base))
                        with program(server, home, arguments) as (mountpoint, roots):
                            machine.settle(functools.partial(all_pids, roots))
                            before, started = machine.cpu_seconds(all_pids(roots)), time.perf_counter()
                            total = (read_files if kind == "files" else read_samples)(mountpoint)
                            elapsed = time.perf_counter() - started
                            used = machine.cpu_seconds(all_pids(roots)) - before
                            results.add(label, "cold seq MB/s", total / elapsed / 1e6)
                            results.add(label, "CPU s/GB", used / (size / 1e9))
                            if kind == "files":
                                started = time.perf_counter()
                                total = read_files(mountpoint)
                                results.add(label, "warm seq MB/s", total / (time.perf_counter() - started) / 1e6)
                            else:
                                for where, folder in (("plain directory", plain), (label, mountpoint)):
                                    read_files(folder)  # warm: every page of both is in memory
                                    first, *later = random_rate(folder, order)
                                    results.add(where, "random first /s", first)
                                    results.add(where, "random later /s", statistics.median(later))
                        shutil.rmtree(home, ignore_errors=True)
        finally:
            server.close()
    finally:
        shutil.rmtree(base, ignore_errors=True)
        shutil.rmtree(store, ignore_errors=True)
    verdicts: list[tuple[str, float, float, bool]] = []
    peers = [results.median(name, "cold seq MB/s") for name in chosen if not name.startswith("mdsfs")]
    best = max((value for value in peers if value), default=None)

    def compare(text: str, measured: float | None, reference: float | None, bar: float, at_least: bool = True) -> None:
        if measured and reference:
            verdicts.append((text, measured / reference, bar, at_least))

    compare("cold sequential, mount / best peer", results.median("mdsfs mount", "cold seq MB/s"), best, 1.3)
    compare("cold sequential, reader / best peer", results.median("our reader, direct", "cold seq MB/s"), best, 2.0)
    for figure in ("random first /s", "random later /s"):
        ours, theirs = results.median("our reader, direct", figure), results.median("plain directory", figure)
        compare(f"warm {figure.removesuffix(' /s')}, mount / plain", ours, theirs, 0.95)
    bare = results.median("bare receive+write", "CPU s/GB")
    compare("client CPU per GB, reader / bare loop", results.median("our reader, direct", "CPU s/GB"), bare, 1.3, False)
    return results.finish(options.json, described, verdicts)


if __name__ == "__main__":
    sys.exit(main())
