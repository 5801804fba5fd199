"""What every benchmark shares: machine description, touched memory, process times, medians, the table at the end."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

TICKS = os.sysconf("SC_CLK_TCK")


def memcpy_rate() -> float:
    """Bytes per second of a 64 MiB numpy copy, memory touched, best of five."""
    source, target = np.ones(64 << 20, np.uint8), np.zeros(64 << 20, np.uint8)
    best = 0.0
    for _ in range(5):
        started = time.perf_counter()
        np.copyto(target, source)
        best = max(best, source.nbytes / (time.perf_counter() - started))
    return best


def description() -> dict[str, object]:
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "memcpy_gb_s": round(memcpy_rate() / 1e9, 1),
    }


def family(pid: int) -> list[int]:
    """The process and all its living descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, queue = [], [pid]
    while queue:
        current = queue.pop()
        found.append(current)
        queue.extend(children.get(current, []))
    return found


def cpu_seconds(pids: list[int]) -> float:
    """User and system time of these processes, their reaped children included."""
    total = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(int(value) for value in fields[11:15])
    return total / TICKS


def settle(pids: Callable[[], list[int]], seconds: float = 10.0) -> None:
    """Return when these processes have been idle for a moment: what starting costs is not what is measured."""
    deadline, before = time.monotonic() + seconds, -1.0
    while time.monotonic() < deadline:
        now = cpu_seconds(pids())
        if now == before:
            return
        before = now
        time.sleep(0.3)


def resident_bytes(pid: int, key: str = "VmHWM") -> int:
    """Peak (VmHWM) or present (VmRSS) resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    return 0


@dataclass
class Results:
    """Measurements by contestant and figure; medians are what is printed."""

    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, contestant: str, figure: str, value: float) -> None:
        self.values.setdefault(contestant, {}).setdefault(figure, []).append(value)

    def median(self, contestant: str, figure: str) -> float | None:
        found = self.values.get(contestant, {}).get(figure)
        return statistics.median(found) if found else None

    def table(self) -> str:
        figures = list(dict.fromkeys(figure for row in self.values.values() for figure in row))
        width = max(len(name) for name in self.values) + 2
        lines = [" " * width + "".join(f"{figure:>22}" for figure in figures)]
        for name, row in self.values.items():
            cells = []
            for figure in figures:
                found = row.get(figure)
                cells.append(f"{statistics.median(found):,.2f} [{min(found):,.1f}–{max(found):,.1f}]" if found else "–")
            lines.append(f"{name:<{width}}" + "".join(f"{cell:>22}" for cell in cells))
        return "\n".join(lines)

    def finish(
        self, path: str | None, machine: dict[str, object], verdicts: list[tuple[str, float, float, bool]]
    ) -> int:
        """Print everything; 1 when a bar is missed. A verdict is (text, measured, bar, at least?)."""
        print(self.table())
        for note in self.notes:
            print(f"note: {note}")
        missed = 0
        for text, measured, bar, at_least in verdicts:
            good = measured >= bar if at_least else measured <= bar
            missed += not good
            print(f"{'ok    ' if good else 'MISSED'} {text}: {measured:.2f} (bar {'≥' if at_least else '≤'} {bar:g})")
        if path:
            record = {"machine": machine, "values": self.values, "verdicts": verdicts, "notes": self.notes}
            Path(path).write_text(json.dumps(record, indent=1))
        return 1 if missed else 0
