"""How datasets and their files are shown: as tables for people, as documents for programs."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from streaming.sizes import format_size

from .cached import shown_prefix
from .table import table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mdsfs.contents.folder import Contents, FileRow, Folder
    from mdsfs.source.datasets import Found, FoundDataset
    from streaming.mds.shards import ShardInfo
    from streaming.remote import ObjectInfo

    from .cached import Chosen, Place

__all__ = ["of_cache", "of_source", "render"]


def of_source(url: str, found: Found, *, files: bool) -> dict[str, Any]:
    """The document of a source: its datasets, with `files` each of their files and whether it is there."""
    datasets = [_source_dataset(dataset, found.objects, files=files) for dataset in found.datasets]
    return {"source": url, "datasets": datasets, "warnings": list(found.warnings)}


def _source_dataset(dataset: FoundDataset, objects: dict[str, ObjectInfo] | None, *, files: bool) -> dict[str, Any]:
    shards = list(dataset.shards())
    rows = [row for shard in shards for row in _source_rows(shard, objects)]
    shown: dict[str, Any] = {
        "name": dataset.prefix or ".",
        "kind": "mds",
        "shards": len(shards),
        "samples": sum(shard.samples for shard in shards),
        "size": sum(row["size"] for row in rows),
        "stored": sum(row["stored"] for row in rows),
        "compression": sorted({str(shard.compression or "none") for shard in shards}),
        "hashes": sorted({name for shard in shards for name in shard.hashes}),
        "missing": sum(row["state"] != "there" for row in rows) if objects is not None else None,
    }
    return shown | ({"files": rows} if files else {})


def _source_rows(shard: ShardInfo, objects: dict[str, ObjectInfo] | None) -> Iterable[dict[str, Any]]:
    for raw, stored in shard.files():
        file = stored or raw
        info = objects.get(file.basename) if objects is not None else None
        state = "unknown"
        if objects is not None:
            state = "missing" if info is None else "there" if info.size == file.bytes else f"{info.size} bytes"
        yield {
            "name": file.basename,
            "samples": shard.samples,
            "size": raw.bytes,
            "stored": file.bytes,
            "compression": shard.compression,
            "state": state,
        }


def of_cache(place: Place, chosen: Chosen, *, files: bool, absent: bool) -> dict[str, Any]:
    """The document of what a cache holds; `absent`: also files of which nothing is there."""
    datasets = [_cached_dataset(place, *each, files=files, absent=absent) for each in chosen]
    return {"cache_dir": str(place.cache_dir), "mountpoint": place.mountpoint, "datasets": datasets}


def _cached_dataset(
    place: Place, folder: Folder, contents: Contents, numbers: list[int], *, files: bool, absent: bool
) -> dict[str, Any]:
    wanted = set(numbers)
    touched = [contents.row(number) for number in contents.touched() if number in wanted]
    shown: dict[str, Any] = {
        "name": shown_prefix(place, folder) or ".",
        "kind": folder.kind,
        "url": folder.url,
        "folder": folder.name,
        "shards": len(contents.tables.shards),
        "files": len(numbers),
        "size": int(contents.tables.files["size"][numbers].sum()),
        "resident": sum(row.resident_bytes for row in touched),
        "complete": sum(row.state == "complete" for row in touched),
        "partial": sum(row.state == "partial" for row in touched),
        "failed": sum(row.state == "failed" for row in touched),
        "pinned": sum(row.pinned for row in touched),
        "users": folder.users,
    }
    if files:
        rows = [contents.row(number) for number in numbers] if absent else touched
        shown["rows"] = [_cached_row(row) for row in rows]
    return shown


def _cached_row(row: FileRow) -> dict[str, Any]:
    shown = dataclasses.asdict(row)
    shown["resident"] = shown.pop("resident_bytes")
    return {name: value for name, value in shown.items() if name != "number"}


def render(document: dict[str, Any]) -> str:
    """The document as tables: one of datasets, or where files were asked for one of files a dataset."""
    datasets = document["datasets"]
    if not datasets:
        return "nothing is there"
    key = "files" if "source" in document else "rows"
    if isinstance(datasets[0].get(key), list):
        parts = [f"{each['name']}:\n{_files(each[key])}" for each in datasets]
        return "\n\n".join(parts)
    if "source" in document:
        head = ("NAME", "SHARDS", "SAMPLES", "SIZE", "STORED", "COMPRESSION", "HASHES", "STATE")
        return table(head, [_source_line(each) for each in datasets])
    names = ("NAME", "FILES", "SIZE", "RESIDENT", "COMPLETE", "PARTIAL", "FAILED", "PINNED", "USERS")
    return table(names, [_cached_line(each) for each in datasets])


def _source_line(each: dict[str, Any]) -> list[str]:
    missing = each["missing"]
    state = "unknown" if missing is None else f"{missing} missing or of another size" if missing else "complete"
    names = [",".join(each["compression"]) or "-", ",".join(each["hashes"]) or "none"]
    sizes = [format_size(each["size"]), format_size(each["stored"])]
    return [each["name"], str(each["shards"]), str(each["samples"]), *sizes, *names, state]


def _cached_line(each: dict[str, Any]) -> list[str]:
    counts = [str(each[name]) for name in ("complete", "partial", "failed", "pinned")]
    users = "-" if each["users"] is None else str(each["users"])
    sizes = [format_size(each["size"]), format_size(each["resident"])]
    return [each["name"], str(each["files"]), *sizes, *counts, users]


def _files(rows: list[dict[str, Any]]) -> str:
    if rows and "resident" in rows[0]:
        head = ("FILE", "SIZE", "RESIDENT", "STATE", "VERIFIED", "PINNED")
        return table(head, [_cached_file(row) for row in rows])
    head = ("FILE", "SAMPLES", "SIZE", "STORED", "COMPRESSION", "STATE")
    return table(head, [_source_file(row) for row in rows])


def _cached_file(row: dict[str, Any]) -> list[str]:
    sizes = [format_size(row["size"]), format_size(row["resident"])]
    return [row["name"], *sizes, row["state"], row["level"], "pinned" if row["pinned"] else "-"]


def _source_file(row: dict[str, Any]) -> list[str]:
    sizes = [format_size(row["size"]), format_size(row["stored"])]
    return [row["name"], str(row["samples"]), *sizes, row["compression"] or "none", row["state"]]
