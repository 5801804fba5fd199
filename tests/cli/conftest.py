"""Fixtures of the commands that look at caches: a way to run them, a dataset, an engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.engine.conftest import write_dataset

from .caches import LIMIT, MIB, Data, Engine, Run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(capsys)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Six shards of 1 MiB that can be read by range."""
    return write_dataset(tmp_path_factory.mktemp("data") / "source", 6, MIB, "seekable")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """An engine that may hold all of that."""
    with Engine(tmp_path / "cache", LIMIT) as engine:
        assert engine.said == b"ok\n", engine.log.read_text()
        yield engine
