"""What log lines look like, from the engine and from its children."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from mdsfs.logs import JournalFormatter, JsonFormatter
from tests.engine.conftest import MIB, ROOT, Engine
from tests.mount.host import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Start = Callable[..., Engine]


def record(level: int, message: str, **extra: Any) -> logging.LogRecord:
    found = logging.LogRecord("mdsfs.engine.fetching.pool", level, __file__, 1, message, None, None)
    found.__dict__.update(extra)
    return found


@pytest.mark.parametrize(
    ("level", "priority"),
    [(logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.DEBUG, 7)],
)
def test_journal_priorities(level: int, priority: int) -> None:
    """Each line begins with its priority, the later ones of a long message too."""
    shown = JournalFormatter("%(name)s: %(message)s").format(record(level, "one\ntwo"))
    assert shown == f"<{priority}>mdsfs.engine.fetching.pool: one\n<{priority}>two"


def test_json_lines() -> None:
    """One object, whatever the message holds; event and subject where there are any."""
    shown = JsonFormatter().format(record(logging.ERROR, 'a "b"\nc', event="store-fails", subject="s3://x"))
    assert "\n" not in shown
    found = json.loads(shown)
    assert found.pop("time").endswith("Z")
    assert found.pop("pid") == os.getpid()
    assert found == {
        "level": "error",
        "logger": "mdsfs.engine.fetching.pool",
        "message": 'a "b"\nc',
        "event": "store-fails",
        "subject": "s3://x",
    }


def test_an_engine_and_its_children_log_json(start: Start) -> None:
    """Every line on stderr is an object; a fetcher that dies is an event."""
    engine = start(4 * MIB, "--log-format", "json")
    with open(f"/proc/{engine.process.pid}/task/{engine.process.pid}/children") as file:
        os.kill(int(file.read().split()[0]), signal.SIGKILL)
    until(lambda: "fetcher-died" in engine.log.read_text())
    engine.stop()
    lines = [json.loads(line) for line in engine.log.read_text().splitlines()]
    assert [line["level"] for line in lines if line.get("event") == "fetcher-died"] == ["warning"]


def test_a_full_log_file_is_put_aside(tmp_path: Path) -> None:
    """A few of them are kept, each as long as it may be, and every line is in one of them."""
    program = (
        "import sys, logging; from pathlib import Path; from mdsfs import logs;"
        "logs.LOG_SIZE = 1000; logs.LOG_FILES = 3; logs.start('info', file=Path(sys.argv[1]));"
        "[logging.getLogger('x').info('line %03d', number) for number in range(200)]"
    )
    file = tmp_path / "engine.log"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", program, str(file)], env=environment, check=True)
    files = sorted(tmp_path.glob("engine.log*"), key=lambda path: path.name, reverse=True)
    assert [path.name for path in files] == ["engine.log.3", "engine.log.2", "engine.log.1", "engine.log"]
    assert all(1000 <= path.stat().st_size < 1100 for path in files[:-1])
    lines = "".join(path.read_text() for path in files).splitlines()
    assert [line[-8:] for line in lines] == [f"line {number:03}" for number in range(200 - len(lines), 200)]


def test_the_journal_is_recognised() -> None:
    """Where systemd says that stderr is the journal, lines have priorities; where it names another file, they don't."""
    program = "from mdsfs import logs; import logging; logs.start('info'); logging.getLogger('x').warning('hello')"
    reading, writing = os.pipe()
    for inode, expected in ((os.fstat(writing).st_ino, "<4>x: hello\n"), (1, " WARNING x: hello\n")):
        stream = f"{os.fstat(writing).st_dev}:{inode}"
        environment = {**os.environ, "JOURNAL_STREAM": stream, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", program], stderr=writing, env=environment, check=True)
        assert os.read(reading, 4096).decode().endswith(expected)
    os.close(reading)
    os.close(writing)
