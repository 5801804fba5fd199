"""The few figures of a status document that change from second to second, and the rates between two of them. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Sample", "rates", "sample"]

Sample = dict[str, float]

# name here: section and key in the document
_GAUGES = {
    "limit": "cache.limit_bytes",
    "charged": "cache.charged_bytes",
    "resident": "cache.resident_bytes",
    "waiting": "reads.waiting",
    "in_flight": "fills.in_flight_bytes",
    "jobs_running": "remote.jobs_running",
    "jobs_queued": "remote.jobs_queued",
}
_COUNTERS = {
    "received": "remote.bytes",
    "requests": "remote.requests",
    "errors": "remote.errors",
    "retries": "remote.retries",
    "at_once": "reads.at_once",
    "hits": "reads.hits",
    "misses": "reads.misses",
    "waited": "reads.waited_seconds",
    "passed": "reads.passed_bytes",
    "mount_bytes": "reads.mount_bytes",
    "evicted": "evictions.bytes",
    "failed": "fills.failed",
}


def sample(document: Mapping[str, Any]) -> Sample:
    """The figures of one document; `t` is the engine's own clock in seconds, which nobody can set."""
    found = {name: _at(document, path) for name, path in (_GAUGES | _COUNTERS).items()}
    return {"t": _at(document, "engine.uptime_seconds"), **found}


def rates(before: Sample | None, now: Sample) -> Sample:
    """What happened between two samples of one engine, per second; since its start when there is none before.

    `stalled` is how many readers were waiting at a time, on the average; `hit_rate` the share of reads that did not
    have to wait, absent when there were none.
    """
    if before is None or now["t"] <= before["t"] or any(now[name] < before[name] for name in _COUNTERS):
        before = dict.fromkeys(now, 0.0)  # another engine than before: it has counted from nothing
    seconds = max(now["t"] - before["t"], 1e-3)
    found = {name: (now[name] - before[name]) / seconds for name in _COUNTERS}
    found["stalled"] = found.pop("waited")
    reads = found["at_once"] + found["hits"] + found["misses"]
    found["reads"] = reads
    if reads:
        found["hit_rate"] = 1 - found["misses"] / reads
    return found


def _at(document: Mapping[str, Any], path: str) -> float:
    section, _, key = path.partition(".")
    value = document.get(section, {}).get(key, 0)
    return float(value) if isinstance(value, int | float) else 0.0
