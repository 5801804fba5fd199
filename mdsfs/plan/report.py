"""An outcome as text for people: what will happen, why, and what would be better."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streaming.sizes import format_size

if TYPE_CHECKING:
    from .outcome import EpochOutcome, Outcome

__all__ = ["render"]

_FORMS = {
    "raw": "uncompressed: any range can be fetched",
    "frames": "seekable zstd: fetched frame by frame",
    "whole": "compressed in one piece: each object is fetched whole",
}
_COLUMNS = ("epoch", "bytes", "least", "best", "requests", "first batch", "stall", "time")


def render(outcome: Outcome) -> str:
    """The report, without a line break at its end."""
    parts = [_pairs(_head(outcome)), _table(outcome), _pairs(_result(outcome))]
    parts += [f"warning: {text}" for text in outcome.warnings]
    return "\n\n".join(parts)


def _head(outcome: Outcome) -> list[tuple[str, str]]:
    data, bounds, options = outcome.dataset, outcome.bounds, outcome.options
    stored = data["stored_bytes"]
    size = format_size(data["bytes"]) + (f", {format_size(stored)} stored" if stored != data["bytes"] else "")
    lines = [
        ("dataset", f"{data['samples']:,} samples in {data['shards']:,} shards, {size}"),
        ("stored", _FORMS[data["form"]]),
        ("host", _host(options)),
        ("reads", f"{format_size(bounds.distinct)} an epoch, from {format_size(bounds.touched)} of shards"),
        ("live window", f"{format_size(bounds.window)} of whole shards are in use at once, at most"),
        ("cache", f"{format_size(options['cache_limit'])}, {format_size(outcome.tables_bytes)} of it index and tables"),
        ("link", f"{format_size(options['bandwidth'])}/s, {seconds(options['latency'])} to the first byte"),
    ]
    if data["simulated_share"] < 1:
        lines.append(("simulated", f"{data['simulated_share']:.2%} of the shards, with as much less cache and link"))
    return lines


def _host(options: dict[str, object]) -> str:
    ranks = f"{options['ranks']} rank{'s' * (options['ranks'] != 1)}"
    nodes = f"one of {options['nodes']} nodes, " if options["nodes"] != 1 else ""
    workers = f" with {options['workers']} workers" if options["workers"] else ""
    step = seconds(float(str(options["step_time"])))
    return f"{nodes}{ranks}{workers}, batches of {options['batch_size']}, {step} of computing a step"


def _table(outcome: Outcome) -> str:
    rows = [_COLUMNS, *(_row(epoch) for epoch in outcome.epochs)]
    priced = any(epoch.cost for epoch in outcome.epochs)
    if priced:
        rows = [
            (*rows[0], "cost"),
            *((*row, f"{e.cost:,.4g}") for row, e in zip(rows[1:], outcome.epochs, strict=True)),
        ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _row(epoch: EpochOutcome) -> tuple[str, ...]:
    busy = epoch.seconds - epoch.stall - epoch.first_batch
    stall = f"{seconds(epoch.stall)} ({epoch.stall / max(busy, 1e-9):.1%})" if epoch.stall > 0 else "none"
    return (
        str(epoch.number + 1),
        format_size(epoch.bytes),
        format_size(epoch.least),
        format_size(epoch.best),
        f"{epoch.requests:,}",
        seconds(epoch.first_batch),
        stall,
        seconds(epoch.seconds),
    )


def _result(outcome: Outcome) -> list[tuple[str, str]]:
    last = outcome.steady
    lines = [("regime", f"{_REGIMES[outcome.regime]}: {outcome.reason}")]
    if outcome.changes_at_bytes is not None:
        other = "exact ranges below" if outcome.regime == "shards" else "whole shards from"
        lines.append(("changes", f"{other} a cache of {format_size(outcome.changes_at_bytes)}"))
    if last.least:
        over = last.bytes / last.least - 1
        lines.append(("distance", f"a steady epoch fetches {over:+.1%} beside the least that any cache must"))
    lines.append(("peak disk", format_size(outcome.peak_bytes)))
    return lines


_REGIMES = {"shards": "whole shards", "ranges": "exact ranges"}


def seconds(value: float) -> str:
    """A time for people: `1.2 ms`, `3.4 s`, `5 min 20 s`, `2 h 5 min`."""
    if value < 0.9995:
        return f"{value * 1e3:.3g} ms"
    if value < 60:
        return f"{value:.3g} s"
    if value < 3600:
        return f"{int(value // 60)} min {int(value % 60)} s"
    return f"{int(value // 3600):,} h {int(value % 3600 // 60)} min"


def _pairs(lines: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)
