"""Many datasets, jobs and users on one host: within few descriptors, and without a trace beside the cache."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.mount.harness import why_not_mountable
from tests.mount.host import Host
from tests.mount.test_ordinary_user import drop, user_python

from .samples import write

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
DATASETS = 10
SHARDS = (3,) * 30
SAMPLES = sum(SHARDS)

pytestmark = [pytest.mark.mounted, pytest.mark.skipif(why_not_mountable() is not None, reason=str(why_not_mountable()))]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Ten datasets in one folder that every user can reach."""
    top = Path(tempfile.mkdtemp(prefix="mdsfs-shared-"))
    top.chmod(0o755)
    for number in range(DATASETS):
        write(top / "source" / f"{number}", SHARDS, compression="zstd")
    yield top
    shutil.rmtree(top)


@pytest.fixture(scope="module")
def mountpoint(folder: Path) -> Iterator[Path]:
    """All of them behind one mount, for everybody."""
    (folder / "host").mkdir(mode=0o755)
    with Host(folder / "host") as host:
        yield host.mounted(folder / "source", "--allow-other")


TEN = """
import json, os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
from streaming import StreamingDataLoader, StreamingDataset
scratch = os.environ["TMPDIR"]
datasets = [StreamingDataset(local=f"{sys.argv[1]}/{n}", batch_size=4, shuffle=True) for n in range(10)]
sums = [sum(sample["id"] for sample in dataset) for dataset in datasets]
loaders = [iter(StreamingDataLoader(dataset, batch_size=4, num_workers=1, collate_fn=list)) for dataset in datasets[:4]]
first = [len(next(loader)) for loader in loaders]
seen = os.listdir("/dev/shm") + os.listdir(scratch)
for dataset in datasets:
    _ = [dataset[n] for n in range(dataset.size - 1, -1, -1)]
for loader in loaders:
    sums.append(sum(sample["id"] for batch in loader for sample in batch))
print(json.dumps({
    "sums": sums[:10], "first": first, "open": len(os.listdir("/proc/self/fd")),
    "during": [name for name in seen if not name.startswith(("torch_", "pymp-"))],
}))
"""


def isolated(*command: str) -> list[str]:
    """A command line that sees an empty /dev/shm of its own."""
    return ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /dev/shm && exec "$@"', "sh", *command]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can have a /dev/shm of its own")
@pytest.mark.parametrize("way", ["mount", "folder"])
def test_ten_datasets_in_256_descriptors(folder: Path, mountpoint: Path, tmp_path: Path, way: str) -> None:
    """Ten datasets of thirty shards, read through and by workers; nothing of ours in /dev/shm or TMPDIR at any time."""
    place = mountpoint if way == "mount" else folder / "source"
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        isolated(sys.executable, "-W", "error", "-c", TEN, str(place)),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["sums"] == [sum(range(SAMPLES))] * DATASETS
    assert found["first"] == [4] * 4
    assert found["open"] < 256
    assert found["during"] == []
    assert list(tmp_path.iterdir()) == []


JOB = """
import sys
from streaming import StreamingDataset
place = dict(local=sys.argv[2]) if sys.argv[1] == "-" else dict(remote=sys.argv[1], local=sys.argv[2])
dataset = StreamingDataset(batch_size=4, shuffle=True, shuffle_seed=int(sys.argv[3]), **place)
print(sum(sample["id"] for sample in dataset), dataset._mix._parts[0].folder.fetches)
"""


@pytest.mark.skipif(user_python() is None or os.geteuid() != 0, reason="no other user can be played here")
def test_two_users_read_one_mount(mountpoint: Path) -> None:
    """Behind a mount for everybody the owner and another user both read directly from the one cache, at once."""
    script = [JOB, "-", f"{mountpoint}/3", "1"]
    owner = subprocess.Popen(
        [sys.executable, "-c", *script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    other = subprocess.Popen(
        drop(str(user_python()), "-c", *script), cwd="/", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    answers = [each.communicate() for each in (owner, other)]
    assert answers == [(f"{sum(range(SAMPLES))} True\n", "")] * 2


def test_two_jobs_share_one_cache(folder: Path, cache: Path) -> None:
    """Two jobs with orders of their own over one folder: both are whole, and only the cache is written to."""
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", JOB, str(folder / "source" / "5"), str(cache), str(seed)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in (1, 2)
    ]
    assert [job.communicate()[0] for job in jobs] == [f"{sum(range(SAMPLES))} True\n"] * 2
    left = {path.name for path in cache.rglob("*") if path.is_file()}
    assert "index.json" in left
    assert not [name for name in left if "lock" in name]
