"""What the documents claim about the tree: files named exist, files that exist are named."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "mdsfs/**/*.md", "streaming/**/*.md", "systemd/**/*.md", "tests/**/*.md")
    for path in ROOT.glob(pattern)
)


def tracked() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return listed.stdout.split()


def readme_tree() -> list[str]:
    """Paths of the annotated tree in the README: two spaces of indent a level, folders end in a slash."""
    text = (ROOT / "README.md").read_text()
    block = re.search(r"## The tree\n\n```\n(.*?)```", text, re.DOTALL)
    assert block, "README.md has no tree"
    parents: list[str] = []
    paths = []
    for line in block.group(1).splitlines():
        name = line.split()[0]
        level = (len(line) - len(line.lstrip())) // 2
        del parents[level:]
        paths.append("".join(parents) + name)
        if name.endswith("/"):
            parents.append(name)
    return paths


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    """Every relative link of every document names an existing file."""
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", document.read_text()):
        assert (document.parent / target).exists(), f"{document.relative_to(ROOT)} links to {target}"


def test_readme_tree_names_what_exists() -> None:
    """The README's tree holds no file that is not there."""
    gone = [path for path in readme_tree() if not (ROOT / path).exists()]
    assert gone == []


def test_readme_tree_is_complete() -> None:
    """Every module of both packages, every script and every unit stands in the README's tree with a comment."""
    named = set(readme_tree())
    wanted = {
        path
        for path in tracked()
        if path.startswith(("mdsfs/", "streaming/", "scripts/", "systemd/"))
        and not path.endswith(("__init__.py", "py.typed"))
        # the compatibility names and the benchmarks are named by their folder
        and not path.startswith(("streaming/base/", "scripts/benchmarks/"))
        and (ROOT / path).exists()
    }
    assert sorted(wanted - named) == []
