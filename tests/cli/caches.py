"""Engines, caches and commands for tests of the commands that look at caches."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mdsfs.cli.main import main
from tests.engine.conftest import MIB, Data, Engine, Reader

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

__all__ = ["LIMIT", "MIB", "Data", "Engine", "Reader", "Run"]

LIMIT = 12 * MIB


class Run:
    """Runs commands in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *argv: str | Path) -> tuple[int, str, str]:
        """Exit code, output, errors."""
        code = main([str(word) for word in argv])
        out, err = self._capsys.readouterr()
        return code, out, err

    def ok(self, *argv: str | Path) -> str:
        """The output of a command that must work, and say nothing else."""
        code, out, err = self(*argv)
        assert (code, err) == (0, "")
        return out

    def json(self, *argv: str | Path) -> Any:
        """The document of one."""
        return json.loads(self.ok(*argv, "--json"))

    def failing(self, *argv: str | Path) -> tuple[int, str]:
        """Exit code and message of one that must fail with one line."""
        code, out, err = self(*argv)
        assert out == ""
        assert err.startswith("mdsfs: ")
        assert err.count("\n") == 1
        return code, err
