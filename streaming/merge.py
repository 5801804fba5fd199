"""Many datasets written side by side become one: their indexes joined, their shards left where they are.

Each shard's name gains the path of its partition below the merged index's folder, however deep that is. Everything is
read and checked before anything is written, so the merged index is whole or it is not there. Its bytes are those that
mosaicml-streaming writes, wherever that gives a dataset that can be read.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from streaming.errors import DatasetError, IndexFormatError, ObjectMissingError
from streaming.locations import is_url, relative_folder, split_location
from streaming.mds.index import INDEX_NAME, MAX_INDEX_BYTES, VERSION, parse_index

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from streaming.remote import Remote

    Place = str | os.PathLike[str]
    Places = Place | tuple[Place, Place]

__all__ = ["merge_index"]

logger = logging.getLogger(__name__)

_FILE_KEYS = ("raw_data", "zip_data", "raw_meta", "zip_meta")


@overload
def merge_index(
    index_file_urls: Sequence[Places], out: Places, keep_local: bool = True, download_timeout: float = 60
) -> None: ...


@overload
def merge_index(out: Places, keep_local: bool = True, download_timeout: float = 60) -> None: ...


def merge_index(*args: Any, **kwargs: Any) -> None:
    """Join the indexes of partitions into one `index.json` in `out`.

    `merge_index(index_file_urls, out, keep_local, download_timeout)` joins the listed indexes in that order; each is a
    path, a URL, or (path, URL), where the URL is read if the path is not there. An index of `out` itself may be among
    them: that is how shards are appended to a dataset.

    `merge_index(out, keep_local, download_timeout)` joins every `index.json` in a folder below `out`, in the order of
    their paths.

    Args:
        index_file_urls: The partitions' index files.
        out: A folder, a URL, or (folder, URL): then the merged index is written to both.
        keep_local: False leaves the merged index at the URL only. Nothing but that file is ever removed.
        download_timeout: Seconds that reading one index may take.

    Raises:
        ValueError: the arguments fit neither form, or nothing would be written.
        SourceMissingError: an index is not there (a FileNotFoundError).
        IndexFormatError: an index breaks its format; the message says which.
        DatasetError: two partitions would name the same file.
    """
    listed = isinstance(args[0], list) if args else "index_file_urls" in kwargs
    form = _merge_list if listed else _merge_root
    try:
        bound = inspect.signature(form).bind(*args, **kwargs)
    except TypeError:
        bound = None
    first = next(iter(bound.arguments.values()), None) if bound else None
    if bound is None or not isinstance(first, str | os.PathLike | tuple | list):
        raise ValueError(f"Invalid arguments to merge_index: {args}, {kwargs}")
    form(*bound.args, **bound.kwargs)


def _merge_list(
    index_file_urls: Sequence[Places], out: Places, keep_local: bool = True, download_timeout: float = 60
) -> None:
    if not index_file_urls or not out:
        logger.warning(
            "Either index_file_urls or out are None. Need to specify both `index_file_urls` and `out`. No index merged"
        )
        return
    target = _Target.of(out, keep_local, download_timeout)
    places = dict.fromkeys(tuple(_clean(place) for place in _as_tuple(item)) for item in index_file_urls)
    target.write(_joined([_read_listed(item, target) for item in places]))


def _merge_root(out: Places, keep_local: bool = True, download_timeout: float = 60) -> None:
    if not out:
        logger.warning("No MDS dataset folder specified, no index merged")
        return
    target = _Target.of(out, keep_local, download_timeout)
    partitions = list(_found(target))
    if not partitions:
        logger.warning(f"no {INDEX_NAME} in any folder below {target.url or target.local}, no index merged")  # noqa: G004
        return
    target.write(_joined(partitions))


# ---- where -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Target:
    """Where the merged index goes."""

    local: str | None
    url: str | None
    keep_local: bool
    timeout: float

    @classmethod
    def of(cls, out: Places, keep_local: bool, timeout: float) -> _Target:
        places = tuple(os.fspath(place) for place in _as_tuple(out))
        if len(places) > 2 or not all(places):
            raise ValueError(f"out: expected a folder, a URL, or (folder, URL), got {out!r}")
        local, url = (places[0], None) if len(places) == 1 else places
        if url is None and is_url(local):
            return cls(None, local, keep_local, timeout)
        if url is None and not keep_local:
            raise ValueError(f"keep_local=False needs a URL in out beside {local!r}: there would be no index at all")
        return cls(local, url, keep_local, timeout)

    def roots(self) -> list[str]:
        return [place for place in (self.local, self.url) if place is not None]

    def open(self, place: str) -> Remote:
        from streaming.remote import RemoteOptions, open_remote  # brings an SDK: only who merges needs it

        return open_remote(place, RemoteOptions.from_environment(total_timeout=self.timeout))

    def write(self, data: bytes) -> None:
        """The remote comes first: a local index promises shards that the remote's readers would miss."""
        if self.url is not None:
            self.open(self.url).put(INDEX_NAME, data)
        if self.local is None:
            return
        if self.keep_local:
            self.open(self.local).put(INDEX_NAME, data)
        else:
            _local_path(self.local, INDEX_NAME).unlink(missing_ok=True)


def _as_tuple(item: Places) -> tuple[Place, ...]:
    return (item,) if isinstance(item, str | os.PathLike) else tuple(item)


def _clean(place: Place) -> str:
    return os.fspath(place).strip().rstrip("/")


def _local_path(folder: str, name: str) -> Path:
    return Path(folder.removeprefix("file://")).expanduser() / name


# ---- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Partition:
    place: str  # of its index, for messages
    prefix: str  # of its shards' names, '' for the folder of the merged index
    data: bytes


def _read_listed(item: tuple[str, ...], target: _Target) -> _Partition:
    if len(item) > 2:
        raise ValueError(f"index_file_urls: expected a path, a URL, or (path, URL), got {item!r}")
    place = item[0]
    if len(item) == 2 and not _local_path(*split_location(place)).exists():
        place = item[1]
        if not place:
            raise ObjectMissingError(
                f"Check data availability! local index {item[0]} is not accessible, and no remote index is given"
            )
    folder, name = split_location(place)
    inside = [path for root in target.roots() if (path := relative_folder(folder, root)) is not None]
    if not inside:
        logger.warning(f"{place} is not in a folder below {' or '.join(target.roots())}: move its shards there")  # noqa: G004
    prefix = inside[0] if inside else split_location(folder)[1]
    return _Partition(place, prefix, _read(target.open(folder), name))


def _found(target: _Target) -> Iterator[_Partition]:
    """Every index below the root, by the text of its path (`a-b` before `a`), as in mosaicml-streaming.

    Folders that begin with a dot hold what programs keep for themselves.
    """
    root = target.url or target.local or ""
    remote = target.open(root)
    for info in remote.list():
        folders = info.key.split("/")
        if len(folders) < 2 or folders[-1] != INDEX_NAME or any(part.startswith(".") for part in folders):
            continue
        source = remote
        if target.url is not None and target.local is not None and _local_path(target.local, info.key).exists():
            source = target.open(target.local)
        yield _Partition(f"{source.url.rstrip('/')}/{info.key}", "/".join(folders[:-1]), _read(source, info.key))


def _read(remote: Remote, key: str) -> bytes:
    return remote.read(key, limit=MAX_INDEX_BYTES)[0]


# ---- joining ---------------------------------------------------------------------------------------------------------


def _joined(partitions: list[_Partition]) -> bytes:
    """The merged index. Keys keep the order that they have in the partitions, as in mosaicml-streaming's."""
    shards: list[dict[str, Any]] = []
    named: dict[str, str] = {}
    for partition in partitions:
        try:
            parse_index(partition.data)
        except IndexFormatError as error:
            raise IndexFormatError(f"{partition.place}: {error}") from error
        for shard in json.loads(partition.data)["shards"]:
            for file in filter(None, map(shard.get, _FILE_KEYS)):
                if partition.prefix:
                    file["basename"] = f"{partition.prefix}/{file['basename']}"
                other = named.setdefault(file["basename"], partition.place)
                if other != partition.place:
                    raise DatasetError(
                        f"{partition.place} and {other} both name {file['basename']}: merge a list with one of them"
                    )
            shards.append(shard)
    data = json.dumps({"version": VERSION, "shards": shards}).encode("ascii")
    parse_index(data)  # a name can be too long, or the total too large, only now
    return data
