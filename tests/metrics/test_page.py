"""The live page in a real browser."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from tests.engine.conftest import MIB, Engine, Reader, write_dataset
from tests.mount.host import until

from .browser import Browser, why_no_browser

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Start = Callable[..., Engine]

pytestmark = pytest.mark.skipif(why_no_browser() is not None, reason=str(why_no_browser()))


@pytest.fixture
def engine(start: Start) -> Engine:
    return start(16 * MIB, "--metrics", "127.0.0.1:0")


@pytest.fixture
def browser(engine: Engine, tmp_path: Path) -> Iterator[Browser]:
    with Browser(tmp_path / "profile") as running:
        running.open(engine.status()["engine"]["metrics"])
        until(lambda: running.text("#live") == "live", 60)
        yield running


def test_it_follows_a_reader_by_itself(engine: Engine, browser: Browser, tmp_path: Path) -> None:
    """Without being loaded again it shows the dataset, its shards by state, the reader and its place; then its end."""
    assert "Nobody reads" in browser.text("#clients")
    data = write_dataset(tmp_path / "data", shards=4, size=2 * MIB, form="zstd")
    with engine.client() as client:
        reader = Reader(client, str(data.folder), data)
        reader.check(2, 0, 2 * MIB)
        until(lambda: "1 complete, 3 absent" in browser.text("#datasets"), 60)
        assert str(data.folder) in browser.text("#datasets")
        until(lambda: "shard.00002.mds at 0" in browser.text("#clients"), 60)
        until(lambda: "2.0 MiB of 16.0 MiB" in browser.text("#tiles"), 60)
        until(lambda: "stream" in browser.text("#timings"), 60)
        until(lambda: browser.value("history.length") >= 3, 60)
        until(lambda: browser.value("document.querySelectorAll('#charts path[stroke-width]').length") == 6, 60)
        picture = Image.open(io.BytesIO(browser.screenshot()))
        assert len(picture.convert("RGB").getcolors(1 << 24) or ()) > 50
        reader.close()
    until(lambda: "Nobody reads" in browser.text("#clients"), 60)


def test_an_engine_that_has_gone(engine: Engine, browser: Browser) -> None:
    """The page says that nobody answers, and keeps what it showed last."""
    engine.stop()
    until(lambda: browser.text("#live").startswith("no answer"), 60)
    assert "16.0 MiB" in browser.text("#tiles")


def test_names_are_text(engine: Engine, browser: Browser, tmp_path: Path) -> None:
    """A dataset whose name is markup is shown as its name; nothing of it runs."""
    folder = tmp_path / "<img src=x onerror=document.title='taken'>"
    data = write_dataset(folder, shards=1, size=MIB)
    with engine.client() as client:
        reader = Reader(client, str(folder), data)
        until(lambda: "<img" in browser.text("#datasets"), 60)
        assert browser.value("document.querySelectorAll('img').length") == 0
        assert json.loads(str(browser.value("JSON.stringify(document.title)"))) != "taken"
        reader.close()
