"""`mdsfs top` as a command: for programs, for pipes, and in a terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.engine.conftest import MIB, ROOT, Engine

if TYPE_CHECKING:
    from collections.abc import Callable

    Start = Callable[..., Engine]


@pytest.fixture
def engine(start: Start) -> Engine:
    return start(4 * MIB)


def command(engine: Engine, *argv: str) -> list[str]:
    return [sys.executable, "-m", "mdsfs", "top", "--cache-dir", str(engine.cache), *argv]


def test_once(engine: Engine) -> None:
    """One screen, then the end."""
    wide = os.environ | {"COLUMNS": "1000"}
    done = subprocess.run(command(engine, "--once"), cwd=ROOT, env=wide, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"mdsfs top   {engine.cache}   engine ")
    assert "4.00 MiB" in done.stdout
    assert "\x1b" not in done.stdout


def test_json_lines(engine: Engine) -> None:
    """A line per look, as many as were asked for."""
    done = subprocess.run(
        command(engine, "-n", "2", "-d", "0.1", "--json"), cwd=ROOT, capture_output=True, text=True, check=True
    )
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert second["figures"]["t"] > first["figures"]["t"]
    assert second["problems"] == []


def test_in_a_terminal(engine: Engine) -> None:
    """It takes the other screen, draws again and again, ends at q, and leaves the terminal as it was."""
    ours, theirs = pty.openpty()
    before = subprocess.run(["stty", "-g"], stdin=theirs, capture_output=True, check=True).stdout
    process = subprocess.Popen(command(engine, "-d", "0.1"), cwd=ROOT, stdin=theirs, stdout=theirs)

    def more() -> bytes:
        assert select.select([ours], [], [], 60)[0], process.poll()
        return os.read(ours, 65536)

    try:
        shown = more()
        while shown.count(b"mdsfs top") < 2:
            shown += more()
        os.write(ours, b"q")
        while not shown.endswith(b"\x1b[?1049l"):
            shown += more()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    assert shown.startswith(b"\x1b[?1049h")
    after = subprocess.run(["stty", "-g"], stdin=theirs, capture_output=True, check=True).stdout
    assert after == before
    os.close(ours)
    os.close(theirs)


def test_without_an_engine(engine: Engine) -> None:
    """One line, and the code of an engine that does not run."""
    engine.stop()
    done = subprocess.run(command(engine), cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (11, 1)
