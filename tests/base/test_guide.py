"""The guide and the migration page say what is so: their examples run, the names that they give are there."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import re
import select
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from streaming.engine.client import EngineClient
from streaming.errors import EngineError

if TYPE_CHECKING:
    from tests.servers import StorageServer

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "streaming" / "GUIDE.md"
MIGRATION = ROOT / "streaming" / "MIGRATION.md"


def blocks(page: Path, language: str) -> list[str]:
    """The page's examples in that language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def end_engine(cache: Path) -> None:
    """Ends the engine that the examples started, if they came that far, and waits until it is gone."""
    with contextlib.suppress(EngineError, OSError), EngineClient.connect(cache, client="cli") as client:
        ended = os.pidfd_open(client.engine["pid"])
        client.stop()
        select.select([ended], [], [], 30)
        os.close(ended)


def test_the_guide_runs_from_top_to_bottom(moto: StorageServer, tmp_path: Path) -> None:
    """Every Python example, one after the other in one program, with a bucket to write to and to read from."""
    examples = blocks(GUIDE, "python")
    assert len(examples) > 10
    try:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", "\n".join(examples)],
            cwd=tmp_path,
            env={**moto.environment, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
    finally:
        end_engine(tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["1000 number 7 999", "[10, 11, 12] [5, 500]", "number 123"]


def test_commands_of_the_guide_exist() -> None:
    """Every command line of the guide is one that the command's own parser accepts."""
    from mdsfs.cli.main import build_parser

    (text,) = blocks(GUIDE, "sh")
    program, *arguments = shlex.split(text)
    assert program == "mdsfs"
    assert isinstance(build_parser().parse_args(arguments), argparse.Namespace)


def test_names_in_the_migration_page_exist() -> None:
    """Whatever the page spells with its module (`streaming.base.util`) can be imported, or is said to be absent."""
    text = MIGRATION.read_text()
    present, absent = text.split("## What is not here")
    for name in set(re.findall(r"`(streaming(?:\.\w+)+)`", present)):
        importlib.import_module(name)
    first_cells = "".join(re.findall(r"^\|.*?\|", absent, re.MULTILINE))
    for name in set(re.findall(r"`(streaming(?:\.\w+)+)`", first_cells)):
        with pytest.raises(ImportError):
            importlib.import_module(name)
