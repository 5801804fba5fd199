"""What a listing of a source means: where datasets are, and which objects belong to none and are shown as they are.

Pure: from keys to decisions. Names that could not be files of a mount are left out, and said so.
"""

from __future__ import annotations

import hashlib
import os.path
from typing import TYPE_CHECKING

from streaming.mds.index import INDEX_NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from streaming.mds.index import Index
    from streaming.mds.tables import DatasetTables
    from streaming.remote import ObjectInfo

__all__ = ["INDEX", "Claims", "digest", "index_prefixes", "plain_objects", "version_of"]

INDEX = INDEX_NAME
_LONGEST_NAME = 255
# Ours, at the root of a mount and of a published dataset.
_RESERVED = {".mdsfs", ".partial"}


class Claims:
    """Names that datasets have taken: of stored objects, and of files as shown."""

    def __init__(self) -> None:
        self.stored: set[str] = set()
        self.shown: set[str] = set()
        self._plain_indexes: set[str] = set()

    def take_index(self, prefix: str, index: Index) -> None:
        """Everything that an index names."""
        at = f"{prefix}/" if prefix else ""
        for shard in index.shards:
            for raw, stored in shard.files():
                self.shown.add(at + raw.basename)
                self.stored.add(at + (stored or raw).basename)

    def take_tables(self, prefix: str, tables: DatasetTables) -> None:
        """The same from the tables of an index that was read before."""
        at = f"{prefix}/" if prefix else ""
        self.shown.update(at + name for name in tables.names())
        self.stored.update(at + key for key in tables.stored_names())

    def not_an_index(self, prefix: str) -> None:
        """The index.json there is some other program's file."""
        self._plain_indexes.add(f"{prefix}/{INDEX}")

    def is_index(self, key: str) -> bool:
        """Whether a dataset's index stands at this key."""
        return (key == INDEX or key.endswith(f"/{INDEX}")) and key not in self._plain_indexes


def index_prefixes(keys: Iterable[str]) -> list[str]:
    """Folders that have an index.json, '' for the root; those above before those below."""
    found = (key[: -len(INDEX)].rstrip("/") for key in keys if key == INDEX or key.endswith(f"/{INDEX}"))
    return sorted(found, key=lambda prefix: (prefix.count("/") + bool(prefix), prefix))


def plain_objects(objects: Iterable[ObjectInfo], claims: Claims) -> tuple[list[ObjectInfo], list[str]]:
    """Objects that no dataset names, sorted by key, and what was left out of them, in words."""
    rest = [
        info
        for info in objects
        if info.key not in claims.stored and not info.key.endswith("/") and not claims.is_index(info.key)
    ]
    folders = _folders(claims.shown)
    for info in rest:
        folders |= _folders([info.key])
    warnings: list[str] = []
    reasons: list[tuple[str, Callable[[str], bool]]] = [
        ("cannot be names of files", lambda key: not _can_be_shown(key)),
        ("have the name of a decompressed shard, which is shown instead", lambda key: key in claims.shown),
        ("have the name of a folder, which is shown instead", lambda key: key in folders),
    ]
    for reason, applies in reasons:
        out = [info.key for info in rest if applies(info.key)]
        if out:
            gone = set(out)
            rest = [info for info in rest if info.key not in gone]
            warnings.append(f"{len(out)} objects are not shown: they {reason} (the first: {out[0]!r})")
    return sorted(rest, key=lambda info: info.key), warnings


def _folders(keys: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for key in keys:
        folder = os.path.dirname(key)
        while folder and folder not in found:
            found.add(folder)
            folder = os.path.dirname(folder)
    return found


def _can_be_shown(key: str) -> bool:
    parts = key.split("/")
    fit = all(part not in ("", ".", "..") and len(part.encode()) <= _LONGEST_NAME for part in parts)
    return fit and parts[0] not in _RESERVED and "\0" not in key


def version_of(info: ObjectInfo) -> str:
    """What changes when the object does: its ETag, or size and time where the store has none."""
    return info.etag or f"{info.size}-{info.mtime_ns}"


def digest(objects: Iterable[ObjectInfo]) -> str:
    """What changes when a listing of plain objects does."""
    found = hashlib.blake2s(digest_size=16)
    for info in objects:
        found.update(f"{info.key}\0{info.size}\0{info.etag}\0{info.mtime_ns}\0".encode())
    return found.hexdigest()
