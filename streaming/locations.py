"""Places as people write them, a path or a URL, taken apart without asking anybody: pure text."""

from __future__ import annotations

import os
from urllib.parse import unquote

__all__ = ["is_url", "relative_folder", "split_location"]


def is_url(place: str) -> bool:
    """Whether the text names a remote and not a local path; file:// is a local one."""
    return "://" in place and not place.startswith("file://")


def split_location(place: str) -> tuple[str, str]:
    """(folder, name) of a file's path or URL, the folder in a form that `open_remote` takes."""
    folder, slash, name = place.rstrip("/").rpartition("/")
    if not slash:
        return ".", name
    if not folder:
        return "/", name
    return folder, name


def relative_folder(folder: str, root: str) -> str | None:
    """Path of `folder` relative to `root`, '/'-separated, '' for the root itself; None where it is not inside."""
    ours, theirs = _normal(root), _normal(folder)
    if theirs == ours:
        return ""
    start = ours.rstrip("/") + "/"
    return theirs[len(start) :] if theirs.startswith(start) else None


def _normal(folder: str) -> str:
    if is_url(folder):
        return folder.rstrip("/")
    if folder.startswith("file://"):
        folder = unquote(folder.removeprefix("file://").removeprefix("localhost"))
    return os.path.abspath(os.path.expanduser(folder))
