"""`mdsfs mount --order`: readers that only open and read files, in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from mdsfs.mount.hinting import EPOCHS
from streaming.engine.client import EngineClient
from tests.mount.harness import why_not_mountable
from tests.mount.host import Host, until

from .conftest import spec_of, write
from .test_readers import jobs

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.mounted,
    pytest.mark.skipif(why_not_mountable() is not None, reason=str(why_not_mountable())),
]

# Reads like mosaicml-streaming: a file is opened for each sample, its offsets are read, then the sample.
READER = """
import json, struct, sys
folder, per_shard = sys.argv[1], int(sys.argv[2])
for line in sys.stdin:
    number = int(line)
    with open(f"{folder}/shard.{number // per_shard:05d}.mds", "rb") as file:
        file.seek(4 * (1 + number % per_shard))
        begin, end = struct.unpack("<II", file.read(8))
        file.seek(begin)
        sample = file.read(end - begin)
    print(struct.unpack("<q", sample[4:12])[0], flush=True)
"""


class Worker:
    """A process that reads samples as it is told."""

    def __init__(self, folder: Path, per_shard: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", READER, str(folder), str(per_shard)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def read(self, ids: list[int]) -> None:
        """Read these samples, one after the other."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        for number in ids:
            self.process.stdin.write(f"{number}\n")
            self.process.stdin.flush()
            assert int(self.process.stdout.readline()) == number

    def end(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        assert self.process.wait(30) == 0
        self.process.stdout.close()


def order_of_run(epoch: int, workers: int, per_shard: int = 10) -> list[list[list[int]]]:
    """Of each worker its batches."""
    from streaming.order.epoch import rank_order
    from streaming.order.world import World

    found: list[list[list[int]]] = rank_order(spec_of(per_shard=per_shard), World(1, 1, workers, 0), epoch).tolist()
    return found


def status(host: Host) -> dict[str, Any]:
    """What the mount shows, without a command's start."""
    found: dict[str, Any] = json.loads((host.mountpoint / ".mdsfs" / "status").read_bytes())
    return found


def orders(host: Host) -> list[dict[str, str]]:
    """Of each job the epochs whose orders the engine has; the mount hints on its own time."""
    return [job["orders"] for job in status(host).get("jobs", [])]


def epochs(host: Host) -> list[int]:
    """Epochs whose orders the mount has."""
    found: list[int] = status(host)["mount"]["order"]["epochs"]
    return found


def places(host: Host) -> dict[int, tuple[int, int]]:
    """Worker to epoch and batch, as the engine knows it."""
    known = status(host).get("jobs", [])
    return {each["worker"]: (each["epoch"], each["batch"]) for job in known for each in job["positions"]}


def test_readers_are_followed(folder: str, tmp_path: Path) -> None:
    """Two workers from the beginning, then a run that goes on in the middle of the next epoch, in other processes."""
    with Host(tmp_path) as host:
        mountpoint = host.mounted(folder, "--order", "shuffle=true,seed=7,batch_size=4,workers=2")
        until(lambda: orders(host) == [{"0": "ready"}])
        first = order_of_run(0, 2)
        workers = [Worker(mountpoint, 10) for _ in range(2)]
        for batch in range(20):
            for number, worker in enumerate(workers):
                worker.read(first[number][batch])
        until(lambda: places(host) == {0: (0, 20), 1: (0, 20)})
        until(lambda: orders(host) == [{"0": "ready", "1": "ready"}])
        until(lambda: 1 in epochs(host))
        for worker in workers:
            worker.end()
        second = order_of_run(1, 2)
        resumed = Worker(mountpoint, 10)
        resumed.read([number for batch in second[1][10:15] for number in batch])
        until(lambda: places(host).get(1) == (1, 15))
        resumed.end()


def test_the_engine_dies(folder: str, tmp_path: Path) -> None:
    """The next one is told the order, and where everybody is."""
    with Host(tmp_path) as host:
        mountpoint = host.mounted(folder, "--order", "shuffle=true,seed=7,batch_size=4")
        until(lambda: epochs(host) == [0])
        (lane,) = order_of_run(0, 1)
        worker = Worker(mountpoint, 10)
        worker.read([number for batch in lane[:8] for number in batch])
        until(lambda: places(host) == {0: (0, 8)})
        with EngineClient.connect(
            host.cache, client="cli"
        ) as client:  # the mount's status may be without a busy engine's
            pid = client.engine["pid"]
        host.kill(pid)
        worker.read([number for batch in lane[8:12] for number in batch])
        until(lambda: status(host)["mount"]["engine_connections"] > 1 and places(host) == {0: (0, 12)}, 60)
        assert status(host)["mount"]["order"]["readers_followed"] == 1
        worker.end()


def test_an_epoch_nobody_told_of(folder: str, tmp_path: Path) -> None:
    """A run that begins with epoch 3 is looked for, and found."""
    with Host(tmp_path) as host:
        mountpoint = host.mounted(folder, "-o", 'order="shuffle=true,seed=7,batch_size=4"')
        (lane,) = order_of_run(3, 1)
        worker = Worker(mountpoint, 10)
        worker.read([number for batch in lane[:10] for number in batch])
        until(lambda: places(host) == {0: (3, 10)})
        worker.read([number for batch in lane[10:12] for number in batch])
        until(lambda: places(host) == {0: (3, 12)})
        worker.end()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("shuffle=true", "needs batch_size"),
        ("batch_size=4,dataset=elsewhere", "no dataset at elsewhere"),
    ],
)
def test_orders_that_are_refused(folder: str, tmp_path: Path, options: str, complaint: str) -> None:
    """Before anything is mounted, in one line."""
    with Host(tmp_path) as host:
        done = host.mount(folder, "--order", options)
        assert done.returncode != 0
        assert complaint in done.stderr
        assert "Traceback" not in done.stderr


def test_a_wrong_order_costs_nothing_but_speed(tmp_path: Path) -> None:
    """Another seed than the readers': every byte is right, and nobody is taken for being somewhere."""
    # With 100 shards, no three that are opened in turn stand anywhere in the epochs that are looked through: whenever
    # that is done while the reader reads, it finds nothing.
    folder = write(tmp_path / "data", 200, per_shard=2)
    with Host(tmp_path) as host:
        mountpoint = host.mounted(folder, "--order", "shuffle=true,seed=8,batch_size=4")
        (lane,) = order_of_run(0, 1, per_shard=2)
        worker = Worker(mountpoint, 2)
        worker.read([number for batch in lane[:20] for number in batch])
        until(lambda: epochs(host) == [EPOCHS], 60)
        assert [job["positions"] for job in jobs(host.cache)] == [[]]
        assert status(host)["mount"]["order"]["readers_followed"] == 0
        worker.end()


def test_a_dataset_in_a_folder(tmp_path: Path) -> None:
    """`dataset=` names it where the mount has several."""
    write(tmp_path / "both" / "a", 40)
    write(tmp_path / "both" / "b", 200)
    with Host(tmp_path) as host:
        mountpoint = host.mounted(str(tmp_path / "both"), "--order", "shuffle=true,seed=7,batch_size=4,dataset=b")
        (lane,) = order_of_run(0, 1)
        worker = Worker(mountpoint / "b", 10)
        worker.read([number for batch in lane[:8] for number in batch])
        until(lambda: places(host) == {0: (0, 8)})
        worker.end()
