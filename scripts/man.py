"""Man pages from the parsers: `python scripts/man.py DIR` writes mdsfs.1, mdsfs-mount.1 and so on there."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from argparse_manpage.manpage import Manpage

from mdsfs.cli.main import build_parser
from mdsfs.mount.status import distribution_version

if TYPE_CHECKING:
    from collections.abc import Iterator


def pages() -> Iterator[tuple[str, str]]:
    """Name and text of every page."""
    parser = build_parser()
    commands = next(each for each in parser._actions if isinstance(each, argparse._SubParsersAction))
    briefs = {each.dest: each.help or "" for each in commands._get_subactions()}
    for name, command in commands.choices.items():
        yield f"mdsfs-{name}", page(f"mdsfs-{name}", briefs[name], command)
    yield "mdsfs", page("mdsfs", "mount remote MDS datasets as plain local files", parser)


def page(name: str, brief: str, parser: argparse.ArgumentParser) -> str:
    """One page. Examples and exit codes keep their lines."""
    epilog, parser.epilog = parser.epilog or "", None
    found: Any = Manpage(parser)
    found.prog, found.source, found.manual, found.description = name, f"mdsfs {distribution_version()}", "mdsfs", brief
    # Of each command the overview says a line; its own page has the rest.
    text = str(found).partition("\n.SH COMMAND ")[0].rstrip()
    lines = "\n".join(_escape(line) for line in epilog.strip().splitlines())
    return f"{text}\n\n.SH NOTES\n.nf\n{lines}\n.fi\n" if lines else f"{text}\n"


def _escape(line: str) -> str:
    line = line.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{line}" if line.startswith((".", "'")) else line


def main(folder: Path) -> int:
    """Write them all."""
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["COLUMNS"] = "80"
    written = [(folder / f"{name}.1").write_text(text) for name, text in pages()]
    print(f"{len(written)} pages in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
