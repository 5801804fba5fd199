"""The main job on an embedded default: write a dataset, serve it from a real S3 server, mount it, train from the mount.

Owns nothing that outlives it: server, mount, engine and every file live in one temporary directory and end with it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from tqdm import tqdm

from streaming import MDSWriter, StreamingDataLoader, StreamingDataset

if TYPE_CHECKING:
    from collections.abc import Iterator

BIN = Path(sys.executable).parent
BUCKET = "datasets"
STEPS = 6


def step(number: int, text: str) -> None:
    print(f"[{number}/{STEPS}] {text}", flush=True)


def write_dataset(folder: Path, samples: int) -> int:
    """Images with a drawn digit and a row of tokens; returns the raw size of the shards in bytes."""
    rng = np.random.default_rng(7)
    columns = {"number": "int", "image": "jpeg", "label": "int", "tokens": "ndarray:uint16"}
    with MDSWriter(
        columns=columns, out=str(folder), compression="zstd", hashes="sha1", size_limit="1mb", frame="sample"
    ) as writer:
        for number in tqdm(range(samples), desc="      writing", unit="sample", disable=None):
            noise = rng.integers(0, 256, (96, 128, 3), dtype=np.uint8)
            picture = Image.fromarray(noise)
            ImageDraw.Draw(picture).text((8, 8), str(number), fill=(255, 255, 255))
            encoded = io.BytesIO()
            picture.save(encoded, "JPEG", quality=85)
            tokens = rng.zipf(1.3, 512).clip(max=50_000).astype(np.uint16)
            writer.write({"number": number, "image": encoded.getvalue(), "label": number % 10, "tokens": tokens})
    index = json.loads((folder / "index.json").read_bytes())
    return sum(shard["raw_data"]["bytes"] for shard in index["shards"])


@contextlib.contextmanager
def s3_server(root: Path, environment: dict[str, str]) -> Iterator[None]:
    """`rclone serve s3` over a folder: signatures are checked, buckets are its sub-folders."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    access, secret = "QUICKSTART", secrets.token_hex(16)
    environment.update(
        AWS_ACCESS_KEY_ID=access,
        AWS_SECRET_ACCESS_KEY=secret,
        AWS_DEFAULT_REGION="us-east-1",
        S3_ENDPOINT_URL=f"http://127.0.0.1:{port}",
    )
    command = [str(BIN / "rclone"), "serve", "s3", "--config", os.devnull, "--addr", f"127.0.0.1:{port}"]
    command += ["--auth-key", f"{access},{secret}", "--no-checksum", "--buffer-size", "0", str(root)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            if server.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("quickstart: the embedded S3 server did not start")
            time.sleep(0.05)  # a foreign process: there is nothing to wait on but its port
        yield
    finally:
        server.terminate()
        server.wait()


def mdsfs(environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [str(BIN / "mdsfs"), *arguments], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"quickstart: mdsfs {arguments[0]} failed: {done.stderr.strip()}")
    return done.stdout


def collate(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {
        "pixels": torch.stack([torch.from_numpy(np.asarray(sample["image"]).copy()) for sample in samples]),
        "number": torch.tensor([sample["number"] for sample in samples]),
        "label": torch.tensor([sample["label"] for sample in samples]),
        "tokens": torch.stack([torch.from_numpy(sample["tokens"].astype(np.int32)) for sample in samples]),
    }


def loader(mountpoint: Path, batch_size: int, workers: int) -> StreamingDataLoader:
    dataset = StreamingDataset(local=str(mountpoint), shuffle=True, batch_size=batch_size)
    return StreamingDataLoader(dataset, batch_size=batch_size, num_workers=workers, collate_fn=collate)


def train(mountpoint: Path, batch_size: int, workers: int, samples: int) -> float:
    """One shuffled pass, interrupted in the middle and resumed by new objects; returns samples per second."""
    seen: Counter[int] = Counter()
    started = time.perf_counter()
    with tqdm(total=samples, desc="      training", unit="sample", disable=None) as bar:
        first = loader(mountpoint, batch_size, workers)
        for batch in first:
            seen.update(batch["number"].tolist())
            bar.update(len(batch["number"]))
            if seen.total() >= samples // 2:
                break
        state = first.state_dict()
        second = loader(mountpoint, batch_size, workers)
        second.load_state_dict(state)
        for batch in second:
            seen.update(batch["number"].tolist())
            bar.update(len(batch["number"]))
    elapsed = time.perf_counter() - started
    if seen != Counter(range(samples)):
        raise SystemExit("quickstart: the two halves are not every sample once")
    print(f"      interrupted after {samples // 2} samples and resumed: every sample came once")
    return samples / elapsed


def megabytes(count: float) -> str:
    return f"{count / 1e6:.1f} MB"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2000, help="how many samples to write (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="DataLoader workers (default: %(default)s)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the finally blocks below run
    home = Path(tempfile.mkdtemp(prefix="mdsfs-quickstart-"))
    cache, mountpoint = home / "cache", home / "mnt"
    mountpoint.mkdir()
    # the operating system's certificate settings concern TLS only; the embedded server is plain HTTP on this machine
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    try:
        step(1, f"write {options.samples} samples (JPEG images and tokens) as MDS shards: zstd, sha1")
        raw = write_dataset(home / "s3" / BUCKET / "demo", options.samples)
        step(2, f"serve them from an S3 server on this machine ({megabytes(raw)} decompressed)")
        with s3_server(home / "s3", environment):
            limit = max(8 << 20, raw // 2)
            step(3, f"mount s3://{BUCKET}/demo with a cache of {megabytes(limit)}: smaller than the dataset")
            mdsfs(
                environment,
                "mount",
                f"s3://{BUCKET}/demo",
                str(mountpoint),
                "--cache-dir",
                str(cache),
                "--cache-limit",
                str(limit),
            )
            try:
                names = sorted(entry.name for entry in mountpoint.iterdir())
                print(f"      {len(names)} plain files, for example {', '.join(names[:3])}; nothing is fetched yet")
                step(4, "one shuffled pass through a DataLoader over the mount, interrupted in the middle and resumed")
                rate = train(mountpoint, 32, options.workers, options.samples)
                step(5, "what it took")
                status = json.loads(mdsfs(environment, "status", str(mountpoint), "--json"))
                print(f"      {rate:,.0f} samples/s")
                print(
                    f"      {megabytes(status['remote']['bytes'])} fetched in {status['remote']['requests']} requests"
                )
                used, bound = status["cache"]["disk_bytes"], status["cache"]["limit_bytes"]
                print(f"      {megabytes(used)} of {megabytes(bound)} of the cache in use")
            finally:
                step(6, "unmount; nothing is left running")
                mdsfs(environment, "umount", str(mountpoint), "--wait", "10")
                with contextlib.suppress(SystemExit):
                    mdsfs(environment, "engine", "--cache-dir", str(cache), "--stop")
    finally:
        shutil.rmtree(home, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
