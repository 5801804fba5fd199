"""The picture of an outcome: bytes and stall over the epoch, and what an epoch fetches at other cache sizes.

matplotlib is an extra and is imported on use. Its object interface draws without a display and without the state that
`pyplot` keeps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mdsfs.errors import UsageError
from streaming.errors import MissingDependencyError
from streaming.sizes import format_size

from .report import seconds

if TYPE_CHECKING:
    from pathlib import Path

    from .outcome import Outcome

__all__ = ["draw", "require"]

# Blue, vermilion, green, grey of the Okabe-Ito palette: told apart by everybody.
BLUE, RED, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"
SIZE_INCHES, DPI = (13.0, 6.4), 130
# What whole shards cost below the live window is orders of magnitude above all else: it is cut off at so many times
# the highest of the other curves, and its height written there.
CUT = 1.35


def require(path: Path) -> None:
    """Raise what would keep a picture from being drawn there, before anything is computed for it."""
    if path.suffix.lower() != ".png":
        raise UsageError(f"--plot: expected a name that ends in .png, got {str(path)!r}")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--plot: there is no folder {path.absolute().parent}")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(f"--plot needs matplotlib ({error}): pip install 'mdsfs[plot]'") from error


def draw(outcome: Outcome, path: Path) -> None:
    """Write the picture as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 2, width_ratios=(1, 1.1), height_ratios=(1.4, 1))
    above = figure.add_subplot(grid[0, 0])
    _bytes(above, outcome)
    _stall(figure.add_subplot(grid[1, 0], sharex=above), outcome)
    _sizes(figure.add_subplot(grid[:, 1]), outcome)
    figure.suptitle(_title(outcome), fontsize=11, x=0.01, ha="left")
    figure.savefig(path, dpi=DPI)


def _title(outcome: Outcome) -> str:
    data, options = outcome.dataset, outcome.options
    run = f"{options['nodes']} × {options['ranks']} ranks, batches of {options['batch_size']}"
    link = f"{format_size(options['bandwidth'])}/s, {seconds(options['latency'])}"
    return (
        f"{data['samples']:,} samples in {data['shards']:,} shards, {format_size(data['bytes'])}  ·  {run}  ·  {link}"
        f"  ·  cache {format_size(options['cache_limit'])}: {_REGIMES[outcome.regime]}"
    )


_REGIMES = {"shards": "whole shards", "ranges": "exact ranges"}


def _epochs(outcome: Outcome) -> list[tuple[int, str, str]]:
    """Place, colour and name of the epochs that are shown: the first, and the last as the one that stands for all."""
    last = len(outcome.epochs) - 1
    return [(0, RED, "first epoch")] + ([(last, BLUE, f"epoch {last + 1}")] if last else [])


def _bytes(axes: Any, outcome: Outcome) -> None:
    unit, name = _unit(max(epoch.bytes for epoch in outcome.epochs))
    for place, colour, label in _epochs(outcome):
        epoch = outcome.epochs[place]
        text = f"{label}: {format_size(epoch.bytes)}, {epoch.requests:,} requests"
        axes.plot(epoch.timeline.done * 100, epoch.timeline.bytes / unit, color=colour, lw=2, label=text)
        axes.axhline(epoch.least / unit, color=colour, lw=1, ls=(0, (4, 3)), alpha=0.8)
        _note(axes, 94, epoch.least / unit, f"least possible {format_size(epoch.least)}", colour)
    axes.set_ylim(bottom=0)
    axes.margins(y=0.12)
    axes.set_ylabel(f"fetched since the epoch began, {name}")
    _finish(axes, "upper left")


def _stall(axes: Any, outcome: Outcome) -> None:
    for place, colour, label in _epochs(outcome):
        epoch = outcome.epochs[place]
        text = f"{label}: {seconds(epoch.stall)} after a first batch in {seconds(epoch.first_batch)}"
        axes.plot(epoch.timeline.done * 100, epoch.timeline.stall, color=colour, lw=2, label=text)
    top = max(float(epoch.timeline.stall[-1]) for epoch in outcome.epochs)
    axes.set_ylim(0, max(top * 1.5, 0.1))
    axes.set_xlim(0, 100)
    axes.set_ylabel("waited so far, s")
    axes.set_xlabel("of the epoch, %")
    _finish(axes, "upper left")


def _sizes(axes: Any, outcome: Outcome) -> None:
    points, steady = outcome.sizes, outcome.steady
    unit, name = _unit(points[-1].limit)
    tall, tall_name = _unit(max(point.bytes for point in points))
    limits = [point.limit / unit for point in points]
    shards = [point.shards / tall for point in points]
    planned = [point.bytes / tall for point in points]
    least = [point.least / tall for point in points]
    axes.plot(limits, shards, color=GREY, lw=1.5, ls="--", label="whole shards, whatever the cache holds")
    axes.plot(limits, least, color=GREEN, lw=5, alpha=0.35, label="least possible, max(0, U − C)")
    axes.plot(limits, planned, color=BLUE, lw=2, label="planned")
    here, now = outcome.options["cache_limit"] / unit, steady.bytes / tall
    text = f"simulated with this cache: {format_size(steady.bytes)}"
    axes.plot([here], [now], "o", color=RED, ms=8, zorder=5, clip_on=False, label=text)
    top = max(*planned, now) * CUT
    axes.set_ylim(0, top)
    axes.set_xlim(0, max(limits[-1], here) * 1.02)
    if max(shards) > top:
        above = next(limit for limit, value in zip(limits[::-1], shards[::-1], strict=True) if value > top)
        text = f"whole shards: up to {format_size(max(shards) * tall)} ▲ "
        width = axes.get_xlim()[1]
        left = above < width / 2
        at = (above + width * (0.08 if left else -0.02), top * 0.72)
        axes.annotate(text, at, ha="left" if left else "right", va="top", fontsize=8.5, color="#444444")
    _knee(axes, outcome.changes_at_bytes, unit)
    axes.set_xlabel(f"cache limit, {name}")
    axes.set_ylabel(f"fetched by a steady epoch, {tall_name}")
    _finish(axes, "upper right")


def _knee(axes: Any, at: int | None, unit: float) -> None:
    """Where the regime changes."""
    width = axes.get_xlim()[1]
    if at is None or at / unit > width:
        return
    knee = at / unit
    axes.axvline(knee, color="#444444", lw=1, ls=":")
    for side, text in (("right", "exact ranges ◂ "), ("left", f" ▸ whole shards from {format_size(at)}")):
        if side == "left" and knee > width * 0.7:
            side, text = "right", f"whole shards from {format_size(at)} ▸\n{'exact ranges'} ◂ "
        elif side == "right" and (knee < width * 0.15 or knee > width * 0.7):
            continue
        axes.annotate(text, (knee, 0.02), xycoords=("data", "axes fraction"), ha=side, fontsize=8.5, color="#444444")


def _note(axes: Any, x: float, y: float, text: str, colour: str) -> None:
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.8}
    place = {"xytext": (0, 3), "textcoords": "offset points", "ha": "right", "va": "bottom"}
    axes.annotate(text, (x, y), **place, fontsize=8, color=colour, bbox=box)


def _finish(axes: Any, place: str) -> None:
    axes.grid(visible=True, color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc=place, fontsize=8.5, framealpha=0.9, edgecolor="none")


def _unit(largest: float) -> tuple[float, str]:
    """Divisor and name of the unit in which the largest value has one to four digits."""
    for power, name in ((50, "PiB"), (40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if largest >= 2**power:
            return float(2**power), name
    return 1.0, "bytes"
