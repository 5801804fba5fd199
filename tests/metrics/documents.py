"""A status document as an engine gives it, small enough to be read."""

from __future__ import annotations

from typing import Any

from mdsfs.metrics.timings import BOUNDS, Timings


def document(**changes: Any) -> dict[str, Any]:
    """An engine with one dataset, a mount and a reader; `changes` replace whole sections."""
    timings = Timings()
    timings.of("read_wait_seconds", "outcome", "fetched").observe(0.02)
    timings.of("fuse_seconds", "operation", "read").observe(5e-5)
    timings.of("fetch_seconds", "kind", "stream").observe(0.1)
    found: dict[str, Any] = {
        "engine": {"pid": 7, "version": "0.1.0", "started": 1e9, "uptime_seconds": 10.0, "options": {}},
        "process": {
            "resident_bytes": 1 << 20,
            "fetchers_resident_bytes": 2 << 20,
            "cpu_seconds": 1.5,
            "open_descriptors": 9,
        },
        "problems": [],
        "problems_begun": {"store": 1, "cache-disk": 0, "credentials": 0},
        "cache": {
            "dir": "/nvme/cache",
            "limit_bytes": 100 << 20,
            "charged_bytes": 50 << 20,
            "resident_bytes": 40 << 20,
            "reserved_bytes": 0,
            "pinned_bytes": 0,
            "filesystem": {"size_bytes": 1 << 40, "free_bytes": 1 << 39},
        },
        "remote": {
            "requests": 5,
            "bytes": 1000,
            "errors": 0,
            "retries": 0,
            "jobs_running": 1,
            "jobs_queued": 2,
            "fetchers": 1,
            "fetcher_restarts": 0,
        },
        "reads": {
            "at_once": 90,
            "hits": 5,
            "misses": 5,
            "waiting": 1,
            "waited_seconds": 2.5,
            "passed_bytes": 0,
            "mount_bytes": 4096,
        },
        "fills": {"running": 1, "failed": 0, "refetched": 0, "in_flight_bytes": 4096},
        "evictions": {"count": 0, "bytes": 0},
        "datasets": [
            {
                "id": "abc",
                "url": "s3://bucket/ds",
                "resident_bytes": 40 << 20,
                "users": 2,
                "shards": {"complete": 2, "partial": 1, "absent": 7, "fetching": 1, "failed": 0},
            }
        ],
        "clients": [
            {
                "kind": "mount",
                "pid": 8,
                "uid": 0,
                "mountpoint": "/mnt/ds",
                "wants": 5,
                "hits": 0,
                "waiting": 1,
                "waited_seconds": 2.5,
                "wanted_bytes": 5000,
                "touched": 3,
                "position": "shard.00001.mds at 4096",
                "reads_at_once": 90,
                "reads_asked": 5,
                "reads_waiting": 1,
                "reads_failed": 0,
                "bytes_read": 4096,
            },
            {
                "kind": "reader",
                "pid": 9,
                "uid": 0,
                "wants": 5,
                "hits": 5,
                "waiting": 0,
                "waited_seconds": 0.0,
                "wanted_bytes": 10,
                "touched": 4,
            },
        ],
        "jobs": [
            {
                "key": "pid 9 dataset 1#4f7bf0bae194",
                "source": "order",
                "datasets": ["s3://bucket/ds"],
                "epoch": 2,
                "positions": [{"rank": 0, "worker": 1, "epoch": 2, "batch": 17}],
                "warnings": [],
                "plan": {
                    "epoch": 2,
                    "position": 160,
                    "horizon": 858,
                    "known": 2840,
                    "datasets": [
                        {
                            "url": "s3://bucket/ds",
                            "regime": "ranges",
                            "reason": "the live window is larger than the cache",
                            "changes_at_bytes": 139884523,
                        }
                    ],
                },
            }
        ],
        "timings": {"bounds": list(BOUNDS), "series": timings.snapshot()},
    }
    return found | changes
