"""`mdsfs doctor`: what it says of hosts, disks and stores that are well, and of those that are not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest

from mdsfs.doctor import cache, host, rates, source
from mdsfs.doctor.rates import Rate
from streaming.remote import RemoteOptions
from tests.engine.conftest import MIB, ROOT, Engine, write_dataset
from tests.mount.harness import why_not_mountable
from tests.servers import clean_environment

if TYPE_CHECKING:
    from collections.abc import Callable

    from mdsfs.doctor.findings import Finding
    from tests.servers import StorageServer

    Start = Callable[..., Engine]


def levels(findings: list[Finding]) -> dict[str, str]:
    """The worst level of each thing."""
    order = ("ok", "warn", "fail")
    found: dict[str, str] = {}
    for each in findings:
        found[each.what] = max(found.get(each.what, "ok"), each.level, key=order.index)
    return found


def doctor(*argv: str | Path, env: dict[str, str] | None = None) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON of the command."""
    done = subprocess.run(
        [sys.executable, "-m", "mdsfs", "doctor", *map(str, argv), "--json"],
        cwd=ROOT,
        env=clean_environment() | (env or {}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def test_a_store_that_is_well(rclone: StorageServer, tmp_path: Path) -> None:
    """Nothing fails, and every rate from memory to a mount is measured; nothing is left behind."""
    data = write_dataset(tmp_path / "data", shards=4, size=MIB, form="zstd")
    rclone.put_tree("well", data.folder)
    place = tmp_path / "place"
    place.mkdir()
    code, found = doctor(rclone.url("well"), "--cache-dir", place / "cache", "--seconds", "0.1", env=rclone.variables)
    assert (code, [each for each in found["findings"] if each["level"] == "fail"]) == (0, [])
    named = {each["name"]: each["bytes_per_second"] for each in found["rates"]}
    expected = {"synthetic", "disk, write", "disk, read", "store", "cold", "warm"}
    if why_not_mountable() is None:
        expected.add("warm, mount")
    assert named.keys() == expected
    assert all(rate > 0 for rate in named.values())
    assert any(each["what"] == "bottleneck" for each in found["findings"])
    assert list(place.iterdir()) == []


def test_for_people(tmp_path: Path) -> None:
    """A line per finding, without a source the host and the disk alone."""
    done = subprocess.run(
        [sys.executable, "-m", "mdsfs", "doctor", "--cache-dir", str(tmp_path), "--no-rates"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"cache             {tmp_path}" in done.stdout
    assert "kernel" in done.stdout
    assert done.returncode in (0, 1)


@pytest.mark.parametrize(
    ("url", "variables", "what"),
    [
        ("s3://bucket/nothing", {}, "index"),
        ("s3://no-such-bucket/x", {}, "index"),
        ("s3://bucket/ds", {"AWS_SECRET_ACCESS_KEY": "wrong"}, "credentials"),
        ("s3://bucket/ds", {"S3_ENDPOINT_URL": "http://127.0.0.1:1"}, "endpoint"),
        ("gopher://x", {}, "source"),
    ],
)
def test_a_source_that_fails(
    rclone: StorageServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    url: str,
    variables: dict[str, str],
    what: str,
) -> None:
    """The failing thing is named, with what to do."""
    rclone.put_tree("ds", write_dataset(tmp_path / "data", shards=1, size=MIB).folder)
    for name, value in (rclone.variables | variables).items():
        monkeypatch.setenv(name, value)
    findings, index, _ = source.check(url, RemoteOptions.from_environment(attempts=1))
    failed = [each for each in findings if each.level == "fail"]
    assert [each.what for each in failed] == [what]
    assert failed[0].fix
    assert index is None


def test_a_folder_of_several_datasets(rclone: StorageServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of them is looked at, and said."""
    for name in ("train", "val"):
        rclone.put_tree(f"several/{name}", write_dataset(tmp_path / name, shards=1, size=MIB).folder)
    for name, value in rclone.variables.items():
        monkeypatch.setenv(name, value)
    found, index, url = source.check(rclone.url("several"), RemoteOptions.from_environment())
    assert index is not None
    assert url == rclone.url("several/train")
    assert levels(found)["datasets"] == "ok"


class Clock(HTTPServer):
    """A server that tells another time."""

    def __init__(self, shift: float | None) -> None:
        class Answer(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.send_response_only(200)
                if shift is not None:
                    self.send_header("Date", formatdate(time.time() + shift, usegmt=True))
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Answer)
        self.thread = Thread(target=self.serve_forever)
        self.thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def stop(self) -> None:
        self.shutdown()
        self.thread.join()
        self.server_close()


@pytest.mark.parametrize(
    ("shift", "level", "said"),
    [
        (0, "ok", "as the store's"),
        (-120, "warn", "ahead of"),
        (3600, "fail", "behind"),
        (-3600, "fail", "ahead of"),
        (None, "warn", "does not tell"),
    ],
)
def test_the_clock(shift: float | None, level: str, said: str) -> None:
    """Seconds are nothing, minutes a warning, a quarter of an hour a failure."""
    server = Clock(shift)
    try:
        found = source._endpoint(server.endpoint)
    finally:
        server.stop()
    assert [each.level for each in found if each.what == "clock"] == [level]
    assert said in found[-1].found


def test_what_about_shards_costs_time_or_safety(tmp_path: Path) -> None:
    """Without hashes, and in forms that can only be fetched whole: a warning that says what to do."""
    folder = write_dataset(tmp_path / "data", shards=1, size=MIB, hashes=False).folder
    entry = json.loads((folder / "index.json").read_text())
    shard = entry["shards"][0]
    shard["compression"], shard["zip_data"] = "gz", shard["raw_data"] | {"basename": "shard.00000.mds.gz"}
    (folder / "index.json").write_text(json.dumps(entry))
    (folder / "shard.00000.mds.gz").write_bytes(b"x" * MIB)
    found, index, _ = source.check(str(folder), RemoteOptions())
    assert index is not None
    assert levels(found) | {"compression": "warn", "hashes": "warn"} == levels(found)


def test_a_cache_directory_that_cannot_be_one(tmp_path: Path) -> None:
    """A file, and a filesystem that takes no files, fail, with what to do."""
    (tmp_path / "file").write_text("")
    assert levels(list(cache.check(tmp_path / "file" / "cache"))) == {"cache": "fail"}
    failed = [each for each in cache.check(Path("/proc/mdsfs")) if each.level == "fail"]
    assert failed[0].fix


def test_an_engine_that_runs(start: Start) -> None:
    """It is named, and asked how it is."""
    engine = start(16 * MIB)
    found = list(cache.check(engine.cache))
    assert [str(engine.process.pid) in each.found for each in found if each.what == "engine"] == [True]


def test_the_tightest_limit_above_the_process(tmp_path: Path) -> None:
    """Of a control group and those above it; v2 and v1; `max` is none."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "memory" / "x").mkdir(parents=True)
    own = tmp_path / "own"
    own.write_text("1:name=systemd:/x\n4:cpu,memory:/x\n0::/a/b\n")
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "a" / "memory.max").write_text(f"{2 << 30}\n")
    (tmp_path / "a" / "b" / "memory.high").write_text(f"{3 << 30}\n")
    (tmp_path / "memory" / "x" / "memory.limit_in_bytes").write_text(f"{1 << 62}\n")
    assert host.allowance(tmp_path, own) == 2 << 30
    (tmp_path / "memory" / "x" / "memory.limit_in_bytes").write_text(f"{1 << 30}\n")
    assert host.allowance(tmp_path, own) == 1 << 30
    assert host._memory(tmp_path, own).level == "warn"


def test_an_old_kernel() -> None:
    """Below the least version it fails, whatever is behind the numbers."""
    assert [host._kernel(name).level for name in ("4.18.0-el8", "5.4.0", "6.18.44-x")] == ["fail", "ok", "ok"]


@pytest.mark.parametrize(
    ("store", "disk", "cold", "said"),
    [
        (50.0, 900.0, 45.0, "the store bounds"),
        (900.0, 50.0, 45.0, "the cache disk bounds"),
        (900.0, 900.0, 45.0, "processors"),
    ],
)
def test_the_bottleneck_is_named(store: float, disk: float, cold: float, said: str) -> None:
    """By which of the rates cold reads come near to."""
    measured = [Rate("disk, write", disk * MIB, ""), Rate("store", store * MIB, ""), Rate("cold", cold * MIB, "")]
    assert [said in each.found for each in rates.judge(measured) if each.what == "bottleneck"] == [True]


@pytest.mark.mounted
def test_a_host_without_fuse(tmp_path: Path) -> None:
    """Hidden from the process, the device is a FAIL that says how to get it, and the exit code is 1."""
    if os.geteuid() != 0:
        pytest.skip("only root may hide /dev/fuse from a process")
    command = f"{sys.executable} -m mdsfs doctor --no-rates --json --cache-dir {tmp_path}"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f"mount -t tmpfs none /dev && exec {command}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    failed = [each for each in json.loads(done.stdout)["findings"] if each["level"] == "fail"]
    assert [each["what"] for each in failed] == ["fuse"]
    assert "modprobe" in failed[0]["fix"]
