"""The status document as Prometheus metrics, in the text format 0.0.4. Pure: a document in, text out.

Names follow the field's conventions: base units, `_total` for what only grows, `_bytes` and `_seconds`, labels from a
bounded set (datasets, mounts, operations; never shards, never processes).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["CONTENT_TYPE", "exposition"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = dict[str, str]
Sample = tuple[Labels, float]

HISTOGRAMS = {
    "request_seconds": "Requests of clients to the engine, until answered.",
    "read_wait_seconds": "Reads of what was not in the cache, until it was there, passed by, or given up.",
    "fetch_seconds": "Jobs of the fetchers, queue included.",
    "fetch_queue_seconds": "Jobs of the fetchers before they began.",
    "evict_seconds": "Evictions, each of some chunks.",
    "fuse_seconds": "Calls of the kernel to a mount, until answered.",
}

# name, type, help, where in the document (or none, where the figure is missing)
_PLAIN: tuple[tuple[str, str, str, str], ...] = (
    ("mdsfs_cache_limit_bytes", "gauge", "What the cache may take.", "cache.limit_bytes"),
    ("mdsfs_cache_charged_bytes", "gauge", "What the cache takes, tables and claims included.", "cache.charged_bytes"),
    ("mdsfs_cache_resident_bytes", "gauge", "Data in the cache.", "cache.resident_bytes"),
    ("mdsfs_cache_reserved_bytes", "gauge", "Claimed for data on its way.", "cache.reserved_bytes"),
    ("mdsfs_cache_pinned_bytes", "gauge", "What could not be evicted because somebody uses it.", "cache.pinned_bytes"),
    ("mdsfs_cache_filesystem_size_bytes", "gauge", "Size of the cache's filesystem.", "cache.filesystem.size_bytes"),
    ("mdsfs_cache_filesystem_free_bytes", "gauge", "Free on the cache's filesystem.", "cache.filesystem.free_bytes"),
    ("mdsfs_cache_evictions_total", "counter", "Chunks that were evicted.", "evictions.count"),
    ("mdsfs_cache_evicted_bytes_total", "counter", "Data that was evicted.", "evictions.bytes"),
    ("mdsfs_cache_passed_bytes_total", "counter", "Data that found no room and was passed by.", "reads.passed_bytes"),
    ("mdsfs_remote_requests_total", "counter", "Requests to stores.", "remote.requests"),
    ("mdsfs_remote_received_bytes_total", "counter", "Bytes received from stores.", "remote.bytes"),
    ("mdsfs_remote_errors_total", "counter", "Requests to stores that failed.", "remote.errors"),
    ("mdsfs_remote_retries_total", "counter", "Requests to stores that were made again.", "remote.retries"),
    ("mdsfs_fetchers", "gauge", "Fetcher processes.", "remote.fetchers"),
    ("mdsfs_fetcher_restarts_total", "counter", "Fetcher processes that died.", "remote.fetcher_restarts"),
    ("mdsfs_fetchers_resident_memory_bytes", "gauge", "Memory of the fetchers.", "process.fetchers_resident_bytes"),
    ("mdsfs_read_waited_seconds_total", "counter", "Time that readers have waited, added up.", "reads.waited_seconds"),
    ("mdsfs_reads_waiting", "gauge", "Reads that wait for data now.", "reads.waiting"),
    ("mdsfs_fills_running", "gauge", "Fills under way.", "fills.running"),
    ("mdsfs_fills_in_flight_bytes", "gauge", "Data that fills under way will bring.", "fills.in_flight_bytes"),
    ("mdsfs_fills_failed_total", "counter", "Fills that failed.", "fills.failed"),
    ("mdsfs_fills_refetched_total", "counter", "Fills with wrong bytes, fetched once more.", "fills.refetched"),
    ("process_resident_memory_bytes", "gauge", "Resident memory of the engine.", "process.resident_bytes"),
    ("process_cpu_seconds_total", "counter", "Processor time of the engine.", "process.cpu_seconds"),
    ("process_open_fds", "gauge", "Open descriptors of the engine.", "process.open_descriptors"),
    ("process_start_time_seconds", "gauge", "When the engine started, since 1970.", "engine.started"),
)


def exposition(document: Mapping[str, Any]) -> str:
    """The metrics of a status document (of an engine, at least its `engine` section); ends with a newline."""
    out = _Text()
    out.family("mdsfs_build_info", "gauge", "Version.", [({"version": str(document["engine"]["version"])}, 1)])
    for name, kind, text, path in _PLAIN:
        value = _at(document, path)
        if value is not None:
            out.family(name, kind, text, [({}, value)])
    _reads(out, document)
    _datasets(out, document.get("datasets", ()))
    _clients(out, document.get("clients", ()))
    _problems(out, document)
    _jobs(out, document.get("jobs", ()))
    _histograms(out, document.get("timings", {}))
    return out.text()


class _Text:
    def __init__(self) -> None:
        self._lines: list[str] = []

    def family(self, name: str, kind: str, text: str, samples: Iterable[Sample]) -> None:
        lines = [self._line(name, labels, value) for labels, value in samples]
        if lines:
            self._lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}", *lines]

    def histogram(self, name: str, text: str, bounds: list[float], series: Iterable[Mapping[str, Any]]) -> None:
        self._lines += [f"# HELP {name} {text}", f"# TYPE {name} histogram"]
        for each in series:
            total = 0
            for bound, count in zip([*bounds, float("inf")], each["counts"], strict=True):
                total += count
                self._lines.append(self._line(f"{name}_bucket", {**each["labels"], "le": _number(bound)}, total))
            self._lines.append(self._line(f"{name}_sum", each["labels"], each["sum"]))
            self._lines.append(self._line(f"{name}_count", each["labels"], total))

    @staticmethod
    def _line(name: str, labels: Mapping[str, str], value: float) -> str:
        shown = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
        return f"{name}{{{shown}}} {_number(value)}" if shown else f"{name} {_number(value)}"

    def text(self) -> str:
        return "\n".join(self._lines) + "\n"


def _escaped(text: str) -> str:
    # What cannot be encoded (a name with broken UTF-8) must not make all the others unreadable.
    clean = text.encode("utf-8", "replace").decode()
    return clean.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: float) -> str:
    return "+Inf" if value == float("inf") else f"{value:.15g}" if isinstance(value, float) else str(int(value))


def _at(document: Mapping[str, Any], path: str) -> float | None:
    found: Any = document
    for part in path.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found if isinstance(found, int | float) else None


def _reads(out: _Text, document: Mapping[str, Any]) -> None:
    reads, remote = document.get("reads", {}), document.get("remote", {})
    text = (
        "Reads: found in the cache without asking (at_once; of readers past FUSE in pieces of 1 MiB), "
        "found by asking (hit), or waited for (miss)."
    )
    ways = (("at_once", "at_once"), ("hit", "hits"), ("miss", "misses"))
    samples = [({"result": one}, reads[many]) for one, many in ways if many in reads]
    out.family("mdsfs_reads_total", "counter", text, samples)
    jobs = [({"state": state}, remote[f"jobs_{state}"]) for state in ("running", "queued") if f"jobs_{state}" in remote]
    out.family("mdsfs_fetch_jobs", "gauge", "Jobs of the fetchers.", jobs)


def _datasets(out: _Text, datasets: Iterable[Mapping[str, Any]]) -> None:
    def labels(each: Mapping[str, Any]) -> Labels:
        return {"dataset": each["id"], "url": each["url"]}

    known = list(datasets)
    states = [(labels(each) | {"state": state}, n) for each in known for state, n in each.get("shards", {}).items()]
    out.family("mdsfs_dataset_shards", "gauge", "Shards by state; fetching and failed ones are in another too.", states)
    for name, text, key in (
        ("mdsfs_dataset_resident_bytes", "Data of the dataset in the cache.", "resident_bytes"),
        ("mdsfs_dataset_users", "Clients that have the dataset open.", "users"),
    ):
        out.family(name, "gauge", text, [(labels(each), each[key]) for each in known])


def _clients(out: _Text, clients: Iterable[Mapping[str, Any]]) -> None:
    known = list(clients)
    kinds: dict[str, int] = dict.fromkeys(("mount", "reader", "cli"), 0)
    for each in known:
        if each["kind"] in kinds:
            kinds[each["kind"]] += 1
    out.family(
        "mdsfs_clients", "gauge", "Connected clients.", [({"kind": kind}, count) for kind, count in kinds.items()]
    )
    mounts = {each["mountpoint"]: each for each in known if "mountpoint" in each and "bytes_read" in each}
    rows = [(mount, {"mountpoint": name}) for name, mount in mounts.items()]
    text = "Reads of the kernel: answered from the cache file at once, or asked of the engine."
    ways = (("at_once", "reads_at_once"), ("asked", "reads_asked"))
    out.family(
        "mdsfs_mount_reads_total",
        "counter",
        text,
        [(labels | {"answered": way}, mount[key]) for mount, labels in rows for way, key in ways if key in mount],
    )
    for name, kind, text, key in (
        ("mdsfs_mount_read_bytes_total", "counter", "Bytes given to the kernel.", "bytes_read"),
        ("mdsfs_mount_reads_failed_total", "counter", "Reads that ended with an error.", "reads_failed"),
        ("mdsfs_mount_reads_waiting", "gauge", "Reads that wait now.", "reads_waiting"),
    ):
        out.family(name, kind, text, [(labels, mount[key]) for mount, labels in rows if key in mount])


def _problems(out: _Text, document: Mapping[str, Any]) -> None:
    now = {(each["what"], each["subject"]) for each in document.get("problems", ())}
    samples = [({"what": what, "subject": subject}, 1) for what, subject in sorted(now)]
    out.family("mdsfs_problem", "gauge", "What does not work now; absent while it does.", samples)
    begun = document.get("problems_begun", {})
    text = "How often something has stopped working."
    out.family("mdsfs_problems_total", "counter", text, [({"what": what}, count) for what, count in begun.items()])


def _jobs(out: _Text, jobs: Iterable[Mapping[str, Any]]) -> None:
    """What the plan knows of each job. Jobs come and go with their readers, a handful at a time."""
    plans = [({"job_key": str(job["key"])}, job["plan"]) for job in jobs if job.get("plan")]
    for key, kind, text in (
        ("epoch", "gauge", "Epoch of the reader that is furthest."),
        ("position", "gauge", "Samples of its epoch that all readers of the host have read, about."),
        ("horizon", "gauge", "How many samples ahead of that everything has been asked for."),
        ("known", "gauge", "How many samples ahead of that the order is known."),
    ):
        unit = "" if key == "epoch" else "_samples"
        samples = [(labels, plan[key]) for labels, plan in plans if isinstance(plan.get(key), int)]
        out.family(f"mdsfs_plan_{key}{unit}", kind, text, samples)
    regimes = [(labels, each) for labels, plan in plans for each in plan.get("datasets", ())]
    out.family(
        "mdsfs_plan_regime",
        "gauge",
        "How the plan fetches a dataset: by whole shards or by ranges.",
        [({**labels, "url": each["url"], "regime": each["regime"]}, 1) for labels, each in regimes],
    )
    out.family(
        "mdsfs_plan_regime_changes_at_bytes",
        "gauge",
        "The cache limit at which the plan would fetch in the other way.",
        [
            ({**labels, "url": each["url"]}, each["changes_at_bytes"])
            for labels, each in regimes
            if each["changes_at_bytes"]
        ],
    )


def _histograms(out: _Text, timings: Mapping[str, Any]) -> None:
    series = timings.get("series", ())
    for name, text in HISTOGRAMS.items():
        of_name = [each for each in series if each["name"] == name]
        if of_name:
            out.histogram(f"mdsfs_{name}", text, list(timings["bounds"]), of_name)
