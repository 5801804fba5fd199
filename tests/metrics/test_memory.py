"""--memory-limit: what is shared out, and that an engine under load stays within it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdsfs.engine.memory import LEAST, share_out
from streaming.errors import CacheLimitError
from tests.engine.conftest import KIB, MIB, Engine, Reader, write_dataset

if TYPE_CHECKING:
    from collections.abc import Callable

    Start = Callable[..., Engine]


@given(
    st.integers(LEAST, 4 << 30),
    st.integers(1, 4),
    st.integers(1, 64),
    st.sampled_from([64 * KIB, MIB, 4 * MIB, 64 * MIB]),
)
def test_shares_stay_within_the_limit(limit: int, processes: int, threads: int, part_size: int) -> None:
    """Whatever was asked for; and nobody gets more than that."""
    shares = share_out(limit, processes, threads, part_size)
    assert shares.total <= limit or shares == share_out(None, processes, threads, part_size)
    assert 1 <= shares.threads <= threads
    assert 1 <= shares.processes <= processes
    assert shares.part_size <= max(part_size, MIB)


@given(st.integers(1, 4), st.integers(1, 64))
def test_more_memory_is_never_less_work(processes: int, threads: int) -> None:
    """With enough of it everything is as it was asked for."""
    assert share_out(64 << 30, processes, threads, 4 * MIB) == share_out(None, processes, threads, 4 * MIB)


def test_too_little() -> None:
    """Below the least the message gives it."""
    with pytest.raises(CacheLimitError, match=str(LEAST)):
        share_out(LEAST - 1, 1, 8, 4 * MIB)


def peak(pid: int) -> int:
    """The most that a process had resident, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def test_an_engine_under_load(start: Start, tmp_path: Path) -> None:
    """Eight readers of more than there is room for, in the cache and past it: the processes stay within the limit."""
    limit = 256 * MIB
    data = write_dataset(tmp_path / "data", shards=4, size=12 * MIB, form="zstd")
    engine = start(3 * MIB, "--memory-limit", str(limit), "--threads", "32")
    failures: list[BaseException] = []

    def read(number: int) -> None:
        try:
            with engine.client() as client:
                reader = Reader(client, str(data.folder), data)
                for turn in range(3):
                    reader.check((number + turn) % 4, 0, 4 * MIB, timeout=60)
                reader.close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert failures == []
    status = engine.status()
    assert status["reads"]["passed_bytes"] > 0
    children = Path(f"/proc/{engine.process.pid}/task/{engine.process.pid}/children").read_text().split()
    used = sum(peak(pid) for pid in (engine.process.pid, *map(int, children)))
    # beside what is on their heaps there may be as much in memory files as they were given for it
    assert used + status["process"]["shares"]["passing"] <= limit
