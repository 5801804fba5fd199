"""What a run comes to: as text, and as a JSON document."""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.chaos.schedule import KINDS

if TYPE_CHECKING:
    from tests.chaos.schedule import Action
    from tests.chaos.stage import Stage

__all__ = ["Report"]

MIB = 1 << 20


@dataclass
class Report:
    """Filled while a run goes on; `failure` is None for a good one."""

    seed: int
    seconds: float
    failure: str | None = None
    recovery: float = 0.0
    log: list[str] = field(default_factory=list)
    actions: Counter[str] = field(default_factory=Counter)
    nobody: Counter[str] = field(default_factory=Counter)
    readers: list[dict[str, Any]] = field(default_factory=list)
    errors: dict[str, Counter[str]] = field(default_factory=dict)
    disks: dict[str, dict[str, int]] = field(default_factory=dict)
    caches: dict[str, dict[str, int]] = field(default_factory=dict)
    mounts: int = 0
    mount_failures: dict[str, int] = field(default_factory=dict)

    def action(self, now: float, action: Action, done: str) -> None:
        """Note an action, and to whom it was done; "": nobody was there."""
        (self.actions if done else self.nobody)[action.kind] += 1
        self.log.append(f"{now:7.2f} s  {action}: {done or 'nobody there'}")

    def ended(self, now: float, kind: str) -> None:
        """Note the end of one."""
        self.log.append(f"{now:7.2f} s  {'':9}  {kind} ends")

    def gather(self, stage: Stage) -> None:
        """What readers, disks and the mount have counted."""
        for reader in stage.readers:
            tally = reader.tally
            figures = {name: tally[name] for name in ("reads", "bytes", "passes", "views")}
            longest = tally["longest"] / 1e9
            self.readers.append(
                {"kind": reader.kind, "lives": reader.lives, **figures, "longest_seconds": round(longest, 3)}
            )
            errors = self.errors.setdefault(reader.kind, Counter())
            path = stage.places.logs / f"reader-{reader.number}.errors"
            if path.exists():
                for line in path.read_text().splitlines():
                    found = json.loads(line)
                    errors[found["cause"] + (" on opening" if found["opening"] else "")] += 1
        for name, disk in stage.disks.items():
            self.disks[name] = {"most": disk.most, "samples": disk.samples}
        self.mounts, self.mount_failures = stage.mount.made, stage.mount.failures

    def document(self) -> dict[str, Any]:
        """All of it, for programs."""
        return dict(self.__dict__)

    def __str__(self) -> str:
        done = ", ".join(f"{kind} {self.actions[kind]}" for kind in KINDS if self.actions[kind])
        lines = [f"{self.seconds:.0f} s on {os.cpu_count()} cores, Linux {platform.release()}"]
        lines.append(f"{sum(self.actions.values())} actions: {done}")
        lines += [f"nobody there: {dict(self.nobody)}"] if self.nobody else []
        lines.append(f"{'reader':<15}{'lives':>6}{'reads':>10}{'MiB':>9}{'epochs':>8}{'longest s':>11}  errors")
        seen: set[str] = set()
        for each in self.readers:
            errors = {} if each["kind"] in seen else self.errors[each["kind"]]
            seen.add(each["kind"])
            causes = ", ".join(f"{cause} {count}" for cause, count in sorted(errors.items()))
            lines.append(
                f"{each['kind']:<15}{each['lives']:>6}{each['reads']:>10,}{each['bytes'] / MIB:>9,.0f}"
                f"{each['passes']:>8}{each['longest_seconds']:>11.2f}  {causes}"
            )
        total = sum(each["reads"] for each in self.readers), sum(each["bytes"] for each in self.readers) / MIB
        views = sum(each["views"] for each in self.readers)
        lines.append(f"in all {total[0]:,} reads, {total[1]:,.0f} MiB compared, {views:,} views looked at again")
        lines += [
            f"cache {name}: at most {each['most'] / MIB:.2f} MiB on disk, {each['samples']:,} samples"
            for name, each in self.disks.items()
        ]
        lines.append(f"{self.mounts} mounts made, {sum(self.mount_failures.values())} attempts failed")
        lines += [f"  {count} × {cause}" for cause, count in self.mount_failures.items()]
        if self.failure:
            return "\n".join([*self.log, *lines, f"FAILED with seed {self.seed}: {self.failure}"])
        return "\n".join([*lines, f"all readers read again after {self.recovery:.1f} s; nothing was left behind"])
