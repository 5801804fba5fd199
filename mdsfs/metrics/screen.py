"""What `mdsfs top` shows: a status document and the rates of the last moment, as lines of text. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streaming.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from .sample import Sample

__all__ = ["lines"]

BAR = 24
# Rows of one table; a terminal shows no more anyway.
MOST_ROWS = 40


def lines(document: Mapping[str, Any], rates: Sample, width: int) -> list[str]:
    """The screen, each line at most `width` characters and nothing in it but printable ones."""
    found = [*_head(document, rates), "", *_datasets(document), *_jobs(document), "", *_readers(document)]
    return [_printable(line)[:width].rstrip() for line in found]


def _printable(text: str) -> str:
    # Names are anybody's: one with control characters in it must not steer the terminal.
    return "".join(character if character.isprintable() else "?" for character in text)


def _head(document: Mapping[str, Any], rates: Sample) -> Iterable[str]:
    engine, cache, reads = document["engine"], document["cache"], document["reads"]
    fills, remote = document["fills"], document["remote"]
    up = _time(engine["uptime_seconds"])
    yield f"mdsfs top   {cache['dir']}   engine {engine['version']}   pid {engine['pid']}   up {up}"
    for each in document.get("problems", ()):
        yield f"PROBLEM  {each['message']} ({each['times']} times)"
    limit = cache["limit_bytes"]
    disk = cache.get("filesystem")
    free = f"   {format_size(disk['free_bytes'])} free on its disk" if disk else ""
    share = cache["charged_bytes"] / limit
    yield f"cache    {_bar(share)} {share:6.1%}   {format_size(cache['resident_bytes'])} of {format_size(limit)}{free}"
    hit_rate = f"{rates['hit_rate']:6.1%}" if "hit_rate" in rates else "     –"
    waiting = f"{rates['stalled']:.1f} readers waiting ({reads['waiting']} now)"
    yield f"hits     {hit_rate}   {rates['reads']:,.0f} reads/s   {waiting}"
    queue = f"{remote['jobs_running']} fetches, {remote['jobs_queued']} queued, {format_size(fills['in_flight_bytes'])}"
    errors = f"   {rates['errors']:.1f} errors/s" if rates["errors"] else ""
    asked = f"{rates['requests']:,.0f} requests/s"
    yield f"store    {_rate(rates['received']):>11}   {asked}   {queue} on their way{errors}"
    evicted, passed = _rate(rates["evicted"]), _rate(rates["passed"])
    yield f"mounts   {_rate(rates['mount_bytes']):>11}   evicted {evicted}   passed by {passed}"


def _datasets(document: Mapping[str, Any]) -> list[str]:
    rows: list[Sequence[str]] = []
    for each in document["datasets"][:MOST_ROWS]:
        shards = each["shards"]
        total = shards["complete"] + shards["partial"] + shards["absent"]
        states = " ".join(f"{count} {state}" for state, count in shards.items() if count)
        full = _bar(shards["complete"] / total if total else 0.0, 12)
        rows.append((each["url"], full, states, format_size(each["resident_bytes"]), str(each["users"])))
    return _table(("DATASET", "", "SHARDS", ">IN THE CACHE", ">USERS"), rows)


def _jobs(document: Mapping[str, Any]) -> list[str]:
    rows: list[Sequence[str]] = []
    for job in document.get("jobs", ())[:MOST_ROWS]:
        places = " ".join(
            f"{each['rank']}.{each['worker']}:{each['batch']}" for each in job.get("positions", ())[:MOST_ROWS]
        )
        plan = job.get("plan") or {}
        regimes = "; ".join(f"{each['regime']}: {each['reason']}" for each in plan.get("datasets", ()))
        ahead = f"{plan['position']:,} +{plan['horizon']:,}" if plan else "–"
        rows.append((str(job["key"])[:40], str(job.get("epoch", "–")), ahead, places or "–", regimes or "–"))
    return ["", *_table(("JOB", ">EPOCH", ">SAMPLES +AHEAD", "RANK.WORKER:BATCH", "PLAN"), rows)] if rows else []


def _readers(document: Mapping[str, Any]) -> list[str]:
    rows: list[Sequence[str]] = []
    clients = [each for each in document["clients"] if each["kind"] in ("mount", "reader")]
    for each in clients[:MOST_ROWS]:
        mount = each["kind"] == "mount"
        misses = each["wants"] - each["hits"]
        reads = each.get("reads_at_once", 0) + each.get("reads_asked", 0) if mount else each["touched"] + each["wants"]
        rows.append(
            (
                f"{each['kind']} {each.get('mountpoint', '')}".rstrip(),
                str(each["pid"]),
                f"{reads:,}",
                f"{max(0.0, 1 - misses / reads):.1%}" if reads else "–",
                str(each.get("reads_waiting", each["waiting"]) if mount else each["waiting"]),
                _time(each["waited_seconds"]),
                each.get("position", "–"),
            )
        )
    heads = ("READER", ">PID", ">READS", ">DID NOT WAIT", ">WAITING", ">WAITED", "LAST ASKED FOR")
    return _table(heads, rows) if rows else ["nobody reads"]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as what is in them; a head that begins with `>` aligns its column to the right."""
    if not rows:
        return ["no dataset is known"]
    names = [head.removeprefix(">") for head in heads]
    widths = [max(len(row[at]) for row in [names, *rows]) for at in range(len(names))]
    return [
        "  ".join(
            cell.rjust(width) if head.startswith(">") else cell.ljust(width)
            for head, cell, width in zip(heads, row, widths, strict=True)
        )
        for row in [names, *rows]
    ]


def _bar(share: float, width: int = BAR) -> str:
    full = max(0, min(width, round(share * width)))
    return "█" * full + "░" * (width - full)


def _rate(value: float) -> str:
    return f"{format_size(int(value))}/s"


def _time(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s"
