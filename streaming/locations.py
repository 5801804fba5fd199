"""Places as people write them, a path or a URL, taken apart without asking anybody: pure text."""

from __future__ import annotations

import os
from urllib.parse import unquote

__all__ = ["instead_of", "is_url", "relative_folder", "scheme_of", "split_location"]

# Stores of other clouds that speak S3 as well, and where.
_S3_DOORS = {
    "gs": "https://storage.googleapis.com and an HMAC key",
    "gcs": "https://storage.googleapis.com and an HMAC key",
    "oci": "https://NAMESPACE.compat.objectstorage.REGION.oraclecloud.com and a customer secret key",
}


def scheme_of(place: str) -> str:
    """The scheme of a URL, in lower case; '' for a path."""
    scheme, found, _ = place.partition("://")
    return scheme.lower() if found else ""


def instead_of(scheme: str) -> str:
    """What to use instead of a scheme that is not read here."""
    if (door := _S3_DOORS.get(scheme)) is not None:
        return f"use s3:// with S3_ENDPOINT_URL={door}"
    return "use s3://, file:// or a path"


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
