"""What the engine tells about itself: one JSON document, for `mdsfs status`, `.mdsfs/status` and the `status` op."""

from __future__ import annotations

import importlib.metadata
import json
import os
import time
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mdsfs.metrics.timings import BOUNDS

from .cache.ledger import BLOCK
from .counters import process_figures, shard_states

if TYPE_CHECKING:
    from .cache.dataset import Dataset
    from .engine import Engine
    from .serving.session import Session

__all__ = ["document", "version"]

# Datasets and clients shown one by one; a document must stay something that a person can read.
MOST_SHOWN = 1000


def version() -> str:
    """Of the installed distribution."""
    try:
        return importlib.metadata.version("mdsfs")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


async def document(engine: Engine, *, brief: bool = False) -> bytes:
    """The status of now; when `brief`, without what the cache takes on the disk, which has to be measured."""
    measured = {} if brief else {"disk_bytes": await engine.disk.taken(engine.store.disk_bytes)}
    shown = {
        "engine": _engine(engine),
        "process": {**process_figures(engine.pool.pids()), "shares": asdict(engine.memory)},
        "problems": engine.health.snapshot(),
        "problems_begun": dict(engine.health.begun),
        "cache": {**_cache(engine), **measured},
        "remote": _remote(engine),
        "reads": _reads(engine),
        "fills": {
            "running": engine.fills.running,
            "failed": engine.fills.flying.failed,
            "refetched": engine.fills.flying.refetched,
            "in_flight_bytes": engine.fills.in_flight * BLOCK,
        },
        "evictions": {"count": engine.cache.evictions, "bytes": engine.cache.evicted_blocks * BLOCK},
        "mounts": [mount | {"pid": each.pid} for each in engine.sessions for mount in each.mounts],
        "jobs": [job | {"plan": engine.planning.to_json(job["key"])} for job in engine.hints.to_json()],
        "refused_hints": list(engine.hints.refused),
        "datasets": [_dataset(engine, each) for each in list(engine.cache.datasets.values())[:MOST_SHOWN]],
        "clients": [_client(each) for each in list(engine.sessions)[:MOST_SHOWN]],
        "timings": {"bounds": BOUNDS, "series": _series(engine)},
    }
    if brief:
        return json.dumps(shown, separators=(",", ":")).encode()
    return json.dumps(shown, indent=1).encode() + b"\n"


def _engine(engine: Engine) -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "version": version(),
        "started": round(engine.started, 3),
        "uptime_seconds": round(time.monotonic() - engine.started_at, 3),
        "options": engine.options.shown(),
        "metrics": engine.metrics_url,
    }


def _cache(engine: Engine) -> dict[str, Any]:
    ledger = engine.cache.ledger.statistics()
    return {
        "dir": str(engine.options.cache_dir),
        "limit_bytes": engine.options.cache_limit,
        "charged_bytes": ledger.used * BLOCK,
        "fixed_bytes": ledger.fixed * BLOCK,
        "resident_bytes": ledger.resident * BLOCK,
        "reserved_bytes": ledger.reserved * BLOCK,
        "pinned_bytes": engine.cache.pinned_blocks * BLOCK,
        "chunk_bytes": engine.cache.chunk * BLOCK,
        "held_chunks": ledger.held_chunks,
        "filesystem": engine.disk.room(),
    }


def _remote(engine: Engine) -> dict[str, Any]:
    pool = engine.pool.statistics()
    return {
        "requests": pool.requests,
        "bytes": pool.bytes,
        "errors": pool.errors,
        "retries": pool.retries,
        "jobs_running": pool.running,
        "jobs_queued": pool.queued,
        "fetchers": pool.processes,
        "fetcher_restarts": pool.restarts,
    }


def _reads(engine: Engine) -> dict[str, Any]:
    # Counted where they happen: by mounts and readers for what they found in the cache, here for what was asked.
    done = Counter(engine.departed)
    for session in engine.sessions:
        done.update(session.activity.totals(is_mount=bool(session.mounts)))
    return {
        "at_once": done["at_once"],
        "hits": engine.wants.hits,
        "misses": engine.wants.misses,
        "waiting": engine.fills.waiting,
        "waited_seconds": round(done["waited_seconds"], 3),
        "passed_bytes": engine.passing.passed,
        "mount_bytes": done["mount_bytes"],
    }


def _dataset(engine: Engine, dataset: Dataset) -> dict[str, Any]:
    return {
        "id": dataset.folder.id,
        "url": dataset.url,
        "kind": dataset.tables.kind,
        "files": len(dataset.tables.files),
        "resident_bytes": engine.cache.ledger.dataset_resident(dataset.number) * BLOCK,
        "users": dataset.users,
        "verify": "shard" if dataset.shard_level else "transport",
        "shards": shard_states(dataset, engine.cache.ledger),
        "failed_files": sum(1 for work in dataset.work.values() if work.error is not None),
    }


def _client(session: Session) -> dict[str, Any]:
    who = {"kind": session.kind, "pid": session.pid, "uid": session.peer.uid}
    mounts = [mount["mountpoint"] for mount in session.mounts]
    return who | ({"mountpoint": mounts[0]} if mounts else {}) | session.activity.shown() | session.activity.reported


def _series(engine: Engine) -> list[dict[str, Any]]:
    """The engine's own histograms, and those that mounts tell of themselves, by mountpoint."""
    told = [
        each | {"labels": {**each["labels"], "mountpoint": session.mounts[0]["mountpoint"]}}
        for session in list(engine.sessions)[:MOST_SHOWN]
        if session.mounts
        for each in session.activity.timings
    ]
    return [*engine.timings.snapshot(), *told]
