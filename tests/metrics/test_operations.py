"""What the operations guide says: its commands, files and figures are those that there are."""

from __future__ import annotations

import re
import shlex

import pytest
import yaml

from mdsfs.cli.main import build_parser
from mdsfs.engine.fetching.pool import DEFAULT_PART_SIZE
from mdsfs.engine.memory import share_out
from streaming.sizes import parse_size
from tests.engine.conftest import MIB, ROOT

GUIDE = (ROOT / "mdsfs" / "OPERATIONS.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


def commands() -> list[list[str]]:
    """Every command line of ours in a block of code."""
    text = "\n".join(re.findall(r"```\w*\n(.*?)```", GUIDE, re.DOTALL)).replace("\\\n", " ")
    lines = re.findall(
        r"(?:^|/|exec |\s)(mdsfs [a-z][^|&>#\n]*?)(?:\s+2$|\s*$|\s+2?>|\s+&|\s+\|\||\s{2,}#)", text, re.MULTILINE
    )
    return [shlex.split(line)[1:] for line in lines]


def test_manifests_are_yaml() -> None:
    """And the one of the DaemonSet has what a mount for others needs."""
    (manifest,) = (yaml.safe_load(block) for block in blocks("yaml"))
    container = manifest["spec"]["template"]["spec"]["containers"][0]
    assert container["securityContext"]["privileged"]
    assert {"name": "mnt", "mountPath": "/mnt/mdsfs", "mountPropagation": "Bidirectional"} in container["volumeMounts"]


@pytest.mark.parametrize("argv", commands(), ids=" ".join)
def test_commands_are_understood(argv: list[str]) -> None:
    """Each is one that the parser takes."""
    build_parser().parse_args(argv)


def test_there_are_commands() -> None:
    """The pattern above finds those that there are."""
    assert {"doctor", "mount", "umount", "warm"} <= {argv[0] for argv in commands()}


def test_options_in_the_text_exist() -> None:
    """A long option in backquotes belongs to some command."""
    choices = next(each.choices for each in build_parser()._actions if each.dest == "command")
    known = {option for parser in choices.values() for option in parser._option_string_actions}  # type: ignore[union-attr,attr-defined]
    named = set(re.findall(r"`(?:[^`]*\s)?(--[a-z][a-z-]+)", GUIDE))
    assert named <= known


def test_the_table_of_memory() -> None:
    """The shares of each limit."""
    rows = re.findall(r"^\| (none|\d+MiB) \| (\d+) \| (\d+) MiB \| (\d+) MiB \|$", GUIDE, re.MULTILINE)
    assert len(rows) == 4
    for limit, threads, part, passing in rows:
        shares = share_out(None if limit == "none" else parse_size(limit), 1, 8, DEFAULT_PART_SIZE)
        assert (shares.threads, shares.part_size, shares.passing) == (int(threads), int(part) * MIB, int(passing) * MIB)


def test_events_are_those_that_are_told() -> None:
    """Each event in the table is in the code, and each in the code is in the table."""
    named = {
        event
        for row in re.findall(r"^\| (`[^|]*`) \| .*$", GUIDE, re.MULTILINE)
        for event in re.findall(r"`([a-z-]+)`", row)
    }
    sources = "\n".join(path.read_text() for path in (ROOT / "mdsfs").rglob("*.py"))
    told = set(re.findall(r'"event": "([a-z-]+)"', sources))
    told |= {f"{what}-{how}" for what in ("store", "credentials", "cache-disk") for how in ("fails", "works")}
    assert told <= named
    assert named & {"store-fails"}
