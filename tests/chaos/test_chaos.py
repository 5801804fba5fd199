"""A minute of the chaos run, and what its schedule promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.run import UNAVAILABLE
from tests.chaos.schedule import KINDS, schedule

ROOT = Path(__file__).resolve().parents[2]


def test_a_seed_names_a_schedule() -> None:
    """The same seed gives the same actions, also of a longer run; another seed gives others."""
    assert schedule(7, 60) == schedule(7, 600)[: len(schedule(7, 60))]
    assert schedule(7, 60) != schedule(8, 60)


def test_every_kind_comes_up_within_a_minute() -> None:
    """Whatever the seed: a short run shows as much as a long one, only less often."""
    assert all({action.kind for action in schedule(seed, 60)} == set(KINDS) for seed in range(100))


@pytest.mark.mounted
@pytest.mark.slow
def test_readers_survive_a_minute_of_it(tmp_path: Path) -> None:
    """No wrong byte, no hang, no block beyond the limits, nothing left behind."""
    command = [sys.executable, "-m", "tests.chaos.run", "--minutes", "1", "--seed", "1", "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode == UNAVAILABLE:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout
