"""Hints that are wrong on purpose: a warning by name, bounded memory and time, and the right bytes for everybody."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from streaming import StreamingDataset
from streaming.engine.hint import HintedStream, HintWorld
from streaming.errors import EngineError, ProtocolError
from tests.mount.host import until

from .conftest import MIB, HandReader, spec_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Engine

    Start = Callable[..., Engine]

HUGE = 1 << 31


def memory_of(pid: int) -> int:
    """Peak of a process's memory in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) << 10


def check_bytes(folder: str, cache: Path) -> None:
    """Somebody else reads all of it, through the same engine."""
    found = StreamingDataset(remote=folder, local=str(cache), batch_size=4, shuffle=True)
    plain = StreamingDataset(local=folder, batch_size=4, shuffle=True)
    assert list(found) == list(plain)


def test_hints_that_are_refused(start: Start, folder: str) -> None:
    """Out of all proportion, of nothing, of another connection's dataset: named in the status, and no job is made."""
    engine = start(16 * MIB)
    with engine.client() as client:
        reader = HandReader(client, folder)
        good = reader.document(spec_of(), HintWorld())
        stream = good.streams[0]
        negative = np.full((1, 1, 5, 4), -2, np.int64)
        foreign = np.full((1, 1, 5, 4), 200, np.int64)
        wrong: list[tuple[Any, str]] = [
            (dataclasses.replace(good, streams=(dataclasses.replace(stream, dataset=99),)), "not open"),
            (dataclasses.replace(good, streams=(dataclasses.replace(stream, choose=HUGE),)), "make no sense"),
            (
                dataclasses.replace(good, streams=(stream, HintedStream(5, sizes=np.array([HUGE], np.int64)))),
                "make no sense",
            ),
            (dataclasses.replace(good, world=HintWorld(1, 1 << 15, 1 << 15, 0, 1 << 15)), "no sense|may take"),
            (dataclasses.replace(good, order={}, ids=negative), "ids"),
            (dataclasses.replace(good, order={}, ids=foreign), "id of no sample"),
        ]
        for hint, complaint in wrong:
            with pytest.raises((EngineError, ProtocolError), match=complaint):
                reader.send(hint)
        with pytest.raises(ProtocolError):
            reader.send_bytes(os.urandom(1000))
        assert reader.jobs() == []
        assert len(reader.refused()) == len(wrong) + 1
        assert all(each.startswith(f"pid {os.getpid()}: ") for each in reader.refused())


IMPOSSIBLE: list[tuple[dict[str, Any], int]] = [
    ({"shuffle_algo": "py1b", "block_size": 0}, 200),
    ({"batching_method": "stratified", "batch_size": 1 << 20}, 200),
    ({}, 0),
]


def test_orders_that_cannot_be_computed(start: Start, folder: str) -> None:
    """They fail in a child, each with a warning by name; the engine is neither slowed down nor larger for it."""
    engine = start(16 * MIB)
    with engine.client() as client:
        reader = HandReader(client, folder)
        before = memory_of(engine.process.pid)
        for number, (options, choose) in enumerate(IMPOSSIBLE):
            hint = reader.document(spec_of(**options), HintWorld(), job=f"job {number}")
            hint = dataclasses.replace(hint, streams=(dataclasses.replace(hint.streams[0], choose=choose),))
            hinted = reader.send(hint)
            with pytest.raises(EngineError) as refused:
                client.order(hinted.job, 0, 60)
            (job,) = (each for each in reader.jobs() if each["key"].startswith(f"job {number}#"))
            assert job["warnings"] == [f"no order of epoch 0: {refused.value}"]
            client.retract(hinted.job)
        assert memory_of(engine.process.pid) - before < 64 * MIB
    check_bytes(folder, engine.cache)


def test_too_many_jobs_and_epochs(start: Start, folder: str) -> None:
    """Of one connection, of one job: what exceeds the bounds is refused, the rest goes on."""
    with start(16 * MIB).client() as client:
        reader = HandReader(client, folder)
        ids = np.zeros((1, 1, 1, 1), np.int64)
        for number in range(80):
            hint = dataclasses.replace(reader.document(spec_of(), HintWorld(), order={}, ids=ids), job=f"job {number}")
            if number < 64:
                last = reader.send(hint)
            else:
                with pytest.raises(EngineError, match="64 jobs"):
                    reader.send(hint)
        assert len(reader.jobs()) == 64
        for number in range(64):
            client.retract(last.job - number)
        until(lambda: reader.jobs() == [])


def test_too_many_epochs(start: Start, folder: str) -> None:
    """Readers of one job that are each in an epoch of their own: up to a bound."""
    engine, spec = start(16 * MIB), spec_of()
    with contextlib.ExitStack() as clients:
        readers = [HandReader(clients.enter_context(engine.client()), folder) for _ in range(9)]
        ids = np.zeros((1, 9, 1, 1), np.int64)
        for number, reader in enumerate(readers):
            hint = reader.document(spec, HintWorld(1, 1, 9, 0, 1), order={}, ids=ids)
            if number < 8:
                reader.send(hint, epoch=number, places=[(0, number, 0)])
            else:
                with pytest.raises(EngineError, match="8 epochs at once"):
                    reader.send(hint, epoch=number, places=[(0, number, 0)])


def test_another_jobs_hint_changes_nothing(start: Start, folder: str, tmp_path: Path) -> None:
    """A hint for a dataset that is read otherwise, and one that claims to be somewhere else: the right bytes."""
    engine = start(16 * MIB)
    with engine.client() as client:
        reader = HandReader(client, folder)
        hinted = reader.send(reader.document(spec_of(seed=99), HintWorld()))
        client.position(hinted.job, HUGE, [(0, 0, HUGE)])
        client.position(hinted.job, 0, [(0, 0, 1 << 60)])
        check_bytes(folder, engine.cache)
