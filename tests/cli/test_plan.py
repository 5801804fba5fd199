"""`mdsfs plan` as a user meets it: what it says about a dataset, a description, and mistakes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from mdsfs.cli.main import main
from mdsfs.cli.plan import duration, rate
from streaming import MDSWriter

if TYPE_CHECKING:
    from pathlib import Path

SMALL = "shards=16,samples_per_shard=32,sample=64kb"
RUN = ["--bandwidth", "1gbit", "--latency", "20ms", "--step-time", "20ms", "--batch-size", "16", "--shuffle"]


def planned(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> dict[str, Any]:
    """The outcome as a document."""
    assert main(["plan", *map(str, argv), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def refused(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> str:
    """The one line of a command that must fail as an error of usage."""
    assert main(["plan", *map(str, argv)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err


def test_a_cache_that_holds_everything(capsys: pytest.CaptureFixture[str]) -> None:
    """Each byte once in the first epoch, within a hundredth, and none later."""
    found = planned(capsys, "--synthetic", SMALL, "--cache-limit", "64mb", *RUN)
    first, *later = [epoch["bytes"] for epoch in found["epochs"]]
    assert found["bounds"]["distinct"] == 16 * 32 * 65536
    assert first <= 1.02 * found["bounds"]["distinct"]
    assert later == [0, 0]
    assert found["regime"] == "shards"


def test_half_of_it_fits(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is below the bound, the limit is kept, and the other regime's cache size is told."""
    found = planned(capsys, "--synthetic", SMALL, "--cache-limit", "16mb", *RUN)
    for epoch in found["epochs"]:
        assert epoch["least"] <= epoch["best"]
        assert epoch["bytes"] >= epoch["least"]
    assert found["peak_bytes"] <= 16 << 20
    assert found["regime"] == "ranges"
    assert found["changes_at_bytes"] > 16 << 20


def test_prices(capsys: pytest.CaptureFixture[str]) -> None:
    """The cost of an epoch is that of its bytes and requests."""
    prices = ["--price-per-gb", "0.09", "--price-per-1000-requests", "0.4"]
    found = planned(capsys, "--synthetic", SMALL, "--cache-limit", "64mb", *RUN, *prices)
    first = found["epochs"][0]
    assert first["cost"] == pytest.approx(first["bytes"] / 1e9 * 0.09 + first["requests"] / 1000 * 0.4, rel=1e-3)


def test_a_dataset_of_its_own_index(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Shards, samples and bytes are those of the index; seekable zstd is found by its frames."""
    for name, writer in {
        "raw": {},
        "frames": {"compression": "zstd:3", "frame": "16kb"},
        "whole": {"compression": "gz"},
    }.items():
        with MDSWriter(out=str(tmp_path / name), columns={"x": "bytes"}, size_limit=1 << 18, **writer) as out:
            for number in range(100):
                out.write({"x": number.to_bytes(2, "big") * 5000})
        found = planned(capsys, tmp_path / name, "--cache-limit", "4mb", *RUN)
        index = json.loads((tmp_path / name / "index.json").read_text())["shards"]
        stored = sum((shard["zip_data"] or shard["raw_data"])["bytes"] for shard in index)
        assert found["dataset"]["form"] == name
        assert (found["dataset"]["shards"], found["dataset"]["samples"]) == (len(index), 100)
        assert found["dataset"]["stored_bytes"] == stored
        assert found["dataset"]["bytes"] == sum(shard["raw_data"]["bytes"] for shard in index)


def test_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    """For people: the figures of every epoch, the regime with its reason, and where it would change."""
    assert main(["plan", "--synthetic", SMALL, "--cache-limit", "16mb", "--epochs", "2", *RUN]) == 0
    text = capsys.readouterr().out
    for what in (
        "512 samples in 16 shards",
        "live window",
        "first batch",
        "exact ranges:",
        "whole shards from a cache of",
    ):
        assert what in text
    assert [line.split()[0] for line in text.splitlines() if line.startswith("    ")][-2:] == ["1", "2"]


def test_single_frames_are_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    """A dataset that can only be fetched whole, in a cache below its window, is told what helps."""
    found = planned(
        capsys, "--synthetic", f"{SMALL},form=whole,ratio=0.5", "--cache-limit", "8mb", *RUN, "--epochs", "1"
    )
    assert "mdsfs repack" in found["warnings"][0]


def test_a_picture(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """--plot writes a PNG of a size that can be looked at."""
    path = tmp_path / "plan.png"
    assert main(["plan", "--synthetic", SMALL, "--cache-limit", "16mb", *RUN, "--plot", str(path)]) == 0
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    assert width > 1000
    assert height > 500
    assert "regime" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ((), "SOURCE"),
        (("/somewhere", "--synthetic", SMALL), "SOURCE"),
        (("--synthetic", "shards=4"), "samples_per_shard"),
        (("--synthetic", "shards=4,shards=5"), "shards=5"),
        (("--synthetic", "shards=0,samples_per_shard=1,sample=1kb"), "shards"),
        (("--synthetic", "shards=4,samples_per_shard=1,sample=kb"), "sample"),
        (("--synthetic", f"{SMALL},form=tar"), "form"),
        (("--synthetic", f"{SMALL},ratio=0"), "ratio"),
        (("--synthetic", "shards=1000000,samples_per_shard=100000,sample=1kb"), "samples"),
        (("--synthetic", SMALL, "--plot", "plan.jpg"), ".png"),
        (("--synthetic", SMALL, "--plot", "/nowhere/plan.png"), "/nowhere"),
        (("--synthetic", SMALL, "--bandwidth", "fast"), "fast"),
        (("--synthetic", SMALL, "--latency=-1ms"), "-1ms"),
        (("--synthetic", SMALL, "--nodes", "4", "--num-canonical-nodes", "6"), "canonical"),
        (("--synthetic", SMALL, "--workers", "-1"), "--workers"),
    ],
)
def test_mistakes(capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], named: str) -> None:
    """Each is one line that names it."""
    assert named in refused(capsys, *argv)


def test_nothing_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A folder without an index: 3."""
    assert main(["plan", str(tmp_path)]) == 3
    assert "index.json" in capsys.readouterr().err


def test_rates_and_times() -> None:
    """Bits are decimal, bytes are binary; times have units, or are seconds."""
    assert rate("10gbit") == 1.25e9
    assert rate("800 Mbps") == 1e8
    assert rate("1.5mb") == rate("1.5MiB/s") == 1.5 * 2**20
    assert [duration(text) for text in ("30ms", "0.03", "2s", "0")] == [0.03, 0.03, 2.0, 0.0]
