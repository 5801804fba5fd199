"""What a repack notes in its destination while it runs, so that the next one goes on where a killed one stopped.

`.repack/job.json` says which source is repacked, and how; `.repack/shards/<key>.json` that a shard is there, has been
read back, and in which version. A record comes after its shard, the index after all records, the records go after the
index, the job last: whatever is found says the truth, wherever the process was killed.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from streaming.errors import IndexFormatError
from streaming.mds.index import VERSION, parse_index

from .rewrite import Written

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streaming.mds.shards import ShardInfo
    from streaming.remote import ObjectInfo, Remote

__all__ = ["Records"]

_FOLDER = ".repack/"
_JOB = f"{_FOLDER}job.json"
_SHARDS = f"{_FOLDER}shards/"
_FORMAT = 1
# A job names the digest of every index of the source: thousands of them fit.
_MOST = 16 << 20
# How a folder's `put` names what it has not finished.
_UNFINISHED = re.compile(r"\.(.+)\.[a-z0-9_]{8}")


class Records:
    """The records of one destination, which had these objects when the job began."""

    def __init__(self, remote: Remote, objects: Mapping[str, ObjectInfo]) -> None:
        self._remote = remote
        self._objects = objects
        self._added: list[str] = []

    def job(self) -> dict[str, Any] | None:
        """The job that was begun here and has not ended; an empty one where it can't be read."""
        if _JOB not in self._objects:
            return None
        found = self._read(_JOB)
        return found if isinstance(found, dict) else {}

    def begin(self, job: Mapping[str, Any]) -> None:
        """Note the job, before anything else is written."""
        self._remote.put(_JOB, _dump({"format": _FORMAT, **job}))
        self._added.append(_JOB)

    def is_same(self, found: Mapping[str, Any], job: Mapping[str, Any]) -> bool:
        """Whether the job that was found is this one."""
        same: bool = found == json.loads(_dump({"format": _FORMAT, **job}))
        return same

    def add(self, written: Written) -> None:
        """A shard is there and has been read back."""
        key = _key(written.shard)
        entry = {"version": VERSION, "shards": [written.shard.to_json()]}
        self._remote.put(key, _dump({"etags": written.etags, "index": entry}))
        self._added.append(key)

    def find(self, shard: ShardInfo, compression: str | None, hashes: tuple[str, ...]) -> Written | None:
        """The shard as an earlier run left it, if it is still there, unchanged, and what is asked for now."""
        if _key(shard) not in self._objects:
            return None
        found = self._read(_key(shard))
        try:
            (new,) = parse_index(_dump(found["index"])).shards
            etags = dict(found["etags"])
        except (KeyError, TypeError, ValueError, IndexFormatError):
            return None
        same = (new.schema, new.samples, new.raw_data[:2]) == (shard.schema, shard.samples, shard.raw_data[:2])
        if not same or (new.compression, new.hashes) != (compression, hashes):
            return None
        files = [stored or raw for raw, stored in new.files()]
        there = all(self._is_there(file.basename, file.bytes, etags.get(file.basename)) for file in files)
        return Written(new, etags) if there else None

    def _is_there(self, key: str, size: int, etag: str | None) -> bool:
        info = self._objects.get(key)
        return info is not None and info.size == size and etag in (None, info.etag)

    def clear(self, finished: set[str]) -> None:
        """Remove the records and what killed runs left half written of these files; the job goes last."""
        keys = dict.fromkeys(key for key in [*self._objects, *self._added] if key.startswith(_FOLDER))
        for key in keys:
            if key != _JOB:
                self._remote.delete(key)
        for key in self._objects:
            folder, slash, name = key.rpartition("/")
            unfinished = _UNFINISHED.fullmatch(name)
            if (
                unfinished
                and f"{folder}{slash}{unfinished[1]}" in finished
                and self._remote.local_path(key) is not None
            ):
                self._remote.delete(key)
        if _JOB in keys:
            self._remote.delete(_JOB)

    def _read(self, key: str) -> Any:
        try:
            return json.loads(self._remote.read(key, limit=_MOST)[0])
        except ValueError:
            return None


def _key(shard: ShardInfo) -> str:
    return f"{_SHARDS}{shard.raw_data.basename}.json"


def _dump(value: Any) -> bytes:
    return json.dumps(value).encode()
