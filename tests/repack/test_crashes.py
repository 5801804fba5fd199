"""A repack may be killed at any instant: the next one goes on, and the result is the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .datasets import write_mds

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    """What was seen at every instant, the last of each kind being a run that did not die."""
    folder = tmp_path_factory.mktemp("crashes")
    write_mds(folder / "source" / "a", samples=25)
    write_mds(folder / "source" / "b", samples=4)
    command = [sys.executable, "-m", "tests.repack.crashing", str(folder / "source"), str(folder / "work")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_result_is_the_same(runs: list[dict[str, object]]) -> None:
    """Byte for byte, with nothing beside it: no records, nothing half written."""
    assert len({each["digest"] for each in runs}) == 1
    assert sum(not each["died"] for each in runs) == 3
    assert sum(bool(each["died"]) for each in runs) > 30


def test_finished_shards_are_not_written_again(runs: list[dict[str, object]]) -> None:
    """What has a record is recognised: only the others are put."""
    shards = {f"{name}.mds.zstd" for name in ("a/shard.00000", "a/shard.00001", "a/shard.00002", "b/shard.00000")}
    for each in runs:
        had, put = each["had"], each["put"]
        assert isinstance(had, list)
        assert isinstance(put, list)
        recorded = {name.removeprefix(".repack/shards/").removesuffix(".json") + ".zstd" for name in had}
        finished = "index.json" in had or {"a/index.json", "b/index.json"} <= set(had)
        assert set(put) == (set() if finished else shards - recorded)


def test_an_index_is_there_only_when_all_shards_are(runs: list[dict[str, object]]) -> None:
    """Whoever finds an index finds every shard that it names."""
    for each in runs:
        had = each["had"]
        assert isinstance(had, list)
        for name in ("a", "b"):
            if f"{name}/index.json" in had:
                assert {f"a/shard.0000{number}.mds.zstd" for number in range(3)} <= set(had)
                assert "b/shard.00000.mds.zstd" in had
