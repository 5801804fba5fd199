"""An engine's cache folder, whose engine ends with the test."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import pytest

from streaming import sources
from streaming.engine.client import EngineClient
from streaming.errors import EngineError
from tests.mount.host import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    """A folder for `local=`."""
    folder = tmp_path / "cache"
    yield folder
    with contextlib.suppress(EngineError, OSError), EngineClient.connect(folder, client="cli") as client:
        ended = os.pidfd_open(client.engine["pid"])
        client.stop()
        wait_for(ended)


@pytest.fixture
def without_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """No mount says where its engine is, as behind a mount of another kind."""
    monkeypatch.setattr(sources, "ENGINE_ATTRIBUTE", "user.mdsfs.nowhere")
