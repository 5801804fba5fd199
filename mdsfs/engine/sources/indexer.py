"""The indexer: a child of the engine that lists a source, reads its indexes, writes their tables, and ends.

`python -m mdsfs.engine.sources.indexer`. The first line on stdin is the request; stdout gets one line `{"bytes": n}`
before anything is written, and after the answer `go` one line with the datasets found; or a line with an error. When
stdin ends the engine is gone, and so is this process. What a listing means is decided in `listing`.
"""

from __future__ import annotations

import gc
import json
import mmap
import os
import queue
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streaming.errors import (
    CredentialsRefusedError,
    DatasetError,
    EndpointUnreachableError,
    ObjectMissingError,
    RemoteError,
    SourceMissingError,
    StreamingError,
    to_wire,
)
from streaming.mds.index import MAX_INDEX_BYTES, parse_index, shown_index
from streaming.mds.tables import build_tables, load_tables, objects_tables
from streaming.mds.uniform import UniformIndex
from streaming.remote import RemoteOptions, open_remote

from ..store.disk import writing
from ..store.folder import growth_bytes
from .listing import INDEX, Claims, digest, index_prefixes, plain_objects, version_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from streaming.remote import ObjectInfo, Remote

__all__ = ["Indexer", "main"]

Chunks = list[bytes | memoryview]


@dataclass(slots=True)
class _Found:
    """One dataset, and the files to be written for it; a reused one has none."""

    prefix: str
    kind: str
    etag: str
    mtime_ns: int = 0
    files: int = 0
    shown_size: int = 0
    stored_size: int = 0
    reused: str | None = None
    contents: dict[str, Chunks] | None = None
    folder: str = ""

    def to_json(self) -> dict[str, Any]:
        names = ("prefix", "kind", "etag", "mtime_ns", "files", "shown_size", "stored_size", "reused", "folder")
        return {name: getattr(self, name) for name in names}


class Indexer:
    """One request."""

    def __init__(self, request: dict[str, Any]) -> None:
        self._url: str = request["url"]
        self._remote: Remote = open_remote(self._url, RemoteOptions(**request["options"]))
        self._with_listing = bool(request["listing"])
        self._staging = Path(request["staging"])
        self._known = {each["prefix"]: each for each in request["known"]}
        self._claims = Claims()
        self.warnings: list[str] = []

    def find(self) -> list[_Found]:
        """All datasets, the root's first, plain objects last."""
        listing, refusal = self._list()
        root = self._root(listing, refusal)
        if listing is None:
            return [root] if root else []
        found = [root] if root else []
        nested = (self._nested(prefix, listing) for prefix in index_prefixes(listing) if prefix)
        found += [each for each in nested if each]
        objects, warnings = plain_objects(listing.values(), self._claims)
        self.warnings += warnings
        if objects:
            found.append(_objects(objects))
        if not found:
            raise SourceMissingError(f"there is nothing under {self._url}: check the bucket and the prefix")
        return found

    def write(self, found: Iterable[_Found]) -> None:
        """Put the files of all new datasets into folders of the staging folder, durably."""
        for number, each in enumerate(found):
            if each.contents is None:
                continue
            each.folder = str(number)
            folder = self._staging / each.folder
            with writing(folder):
                folder.mkdir(mode=0o700, parents=True)
                for name, chunks in each.contents.items():
                    _write(folder / name, chunks)
            each.contents = None

    # ---- finding -----------------------------------------------------------------------------------------------------

    def _list(self) -> tuple[dict[str, ObjectInfo] | None, RemoteError | None]:
        if not self._with_listing:
            return None, None
        try:
            return {info.key: info for info in self._remote.list()}, None
        except EndpointUnreachableError:
            raise  # what needs no listing is behind the same address: another round of attempts would say the same
        except RemoteError as error:
            return None, error

    def _root(self, listing: dict[str, ObjectInfo] | None, refusal: RemoteError | None) -> _Found | None:
        if listing is not None and INDEX not in listing:
            return None
        try:
            found = self._dataset("", listing[INDEX] if listing else None)
        except DatasetError as error:
            raise type(error)(f"{self._url}: {error}") from error
        except ObjectMissingError as error:
            if isinstance(refusal, CredentialsRefusedError) or (
                refusal and not isinstance(refusal, SourceMissingError)
            ):
                raise refusal from error
            raise self._missing() from error
        if refusal is not None:
            self.warnings.append(f"cannot list {self._url}, so only what its {INDEX} names is shown: {refusal}")
        return found

    def _missing(self) -> SourceMissingError:
        text = f"there is no {INDEX} under {self._url}"
        try:
            folders = [info.key for info in self._remote.list(recursive=False) if info.key.endswith("/")]
        except RemoteError:
            folders = []
        if folders:
            text += f": it has folders ({', '.join(folders[:3])}), of which one may be the dataset"
        return SourceMissingError(text if folders else f"{text}: check the bucket and the prefix")

    def _nested(self, prefix: str, listing: dict[str, ObjectInfo]) -> _Found | None:
        try:
            return self._dataset(prefix, listing[f"{prefix}/{INDEX}"])
        except DatasetError as error:
            self.warnings.append(f"{prefix}/{INDEX} is shown as it is, since it is no dataset's: {error}")
            self._claims.not_an_index(prefix)
            return None

    def _dataset(self, prefix: str, info: ObjectInfo | None) -> _Found:
        known = self._known.get(prefix)
        if known is not None:
            # A HEAD of a few hundred bytes instead of an index of a hundred million.
            info = info or self._remote.stat(_join(prefix, INDEX))
            if version_of(info) == known["etag"]:
                return self._reuse(prefix, known)
        data, info = self._remote.read(_join(prefix, INDEX), limit=MAX_INDEX_BYTES)
        contents, files, shown_size, stored_size = self._contents(prefix, data)
        return _Found(
            prefix,
            "mds",
            version_of(info),
            info.mtime_ns,
            files=files,
            shown_size=shown_size,
            stored_size=stored_size,
            contents=contents,
        )

    def _contents(self, prefix: str, data: bytes) -> tuple[dict[str, Chunks], int, int, int]:
        """(files to be written, files of the dataset, their bytes as shown and as stored) of an index."""
        uniform = UniformIndex.read(data)
        if uniform is not None:
            tables = uniform.tables()
            if self._with_listing:
                self._claims.take_tables(prefix, load_tables(b"".join(tables)))
            shown: Chunks = [*uniform.shown()] if uniform.is_compressed else [data]
            sizes = int(uniform.raw_bytes.sum()), int(uniform.stored_bytes.sum())
            return {"tables": tables, "index.orig": [data], "index.json": shown}, len(uniform), *sizes
        index = parse_index(data)
        if self._with_listing:
            self._claims.take_index(prefix, index)
        pairs = [(raw.bytes, (stored or raw).bytes) for shard in index.shards for raw, stored in shard.files()]
        contents: dict[str, Chunks] = {
            "tables": build_tables(index),
            "index.orig": [data],
            "index.json": [shown_index(data, index)],
        }
        return contents, len(pairs), sum(raw for raw, _ in pairs), sum(stored for _, stored in pairs)

    def _reuse(self, prefix: str, known: dict[str, str]) -> _Found:
        if self._with_listing:
            with open(known["tables"], "rb") as file:
                tables = load_tables(memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)))
            self._claims.take_tables(prefix, tables)
        return _Found(prefix, "mds", known["etag"], reused=known["id"])


def _join(prefix: str, name: str) -> str:
    return f"{prefix}/{name}" if prefix else name


def _objects(objects: list[ObjectInfo]) -> _Found:
    total = sum(info.size for info in objects)
    rows = [(info.key, info.key, info.size, info.mtime_ns, info.etag) for info in objects]
    return _Found(
        "",
        "objects",
        digest(objects),
        max(info.mtime_ns for info in objects),
        files=len(objects),
        shown_size=total,
        stored_size=total,
        contents={"tables": objects_tables(rows)},
    )


def _write(path: Path, chunks: Chunks) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "wb", buffering=1 << 20) as file:
        file.writelines(chunks)
        file.flush()
        # A dataset.json beside them will say that they are whole; after a power cut too.
        os.fsync(fd)


# ---- the process -----------------------------------------------------------------------------------------------------


def _listen(lines: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(1)


def _say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def serve(next_line: Callable[[], str]) -> dict[str, Any]:
    """One request from its first line to its answer."""
    try:
        indexer = Indexer(json.loads(next_line()))
        found = indexer.find()
        needed = [
            len(chunk) for each in found if each.contents for chunks in each.contents.values() for chunk in chunks
        ]
        if needed:
            _say({"bytes": sum(needed) + sum(growth_bytes(each.files) for each in found if each.contents)})
            next_line()
            indexer.write(found)
        return {"datasets": [each.to_json() for each in found], "warnings": indexer.warnings}
    except StreamingError as error:
        return {"error": to_wire(error)}
    except MemoryError:
        return {"error": to_wire(StreamingError("the index needs more memory than there is"))}


def main() -> None:
    """The process."""
    # It makes a million objects, keeps them all, and ends: looking for cycles among them takes a third of its time.
    gc.disable()
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    _say(serve(lines.get))
    os._exit(0)  # the other thread waits for a line that will not come


if __name__ == "__main__":
    main()
