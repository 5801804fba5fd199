"""What importing costs and brings along, seen from fresh interpreters."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def loaded(statement: str) -> set[str]:
    """Top-level modules in memory after a statement, in an interpreter of its own."""
    program = f"{statement}\nimport sys\nprint('\\n'.join(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("heavy", ["torch", "boto3", "botocore", "trio", "pyfuse3", "PIL", "mdsfs"])
def test_import_streaming_is_light(heavy: str) -> None:
    """`import streaming` brings neither torch nor a cloud SDK nor the filesystem."""
    assert heavy not in loaded("import streaming")


@pytest.mark.parametrize("name", ["MDSWriter", "LocalDataset"])
def test_names_are_found_without_torch(name: str) -> None:
    """The reader and the writer are importable, and usable as classes, without torch."""
    assert "torch" not in loaded(f"from streaming import {name}; {name}.__doc__")


@pytest.mark.parametrize(
    "statement", ["import mdsfs.cli.main", "import mdsfs.engine.serving.server", "import mdsfs.mount.operations"]
)
def test_mdsfs_never_brings_torch(statement: str) -> None:
    """No part of the filesystem imports torch, even indirectly."""
    assert "torch" not in loaded(statement)


def test_help_needs_no_fuse() -> None:
    """`mdsfs --help` works where pyfuse3 and trio are not installed."""
    assert not loaded("import mdsfs.cli.main") & {"pyfuse3", "boto3", "torch"}
