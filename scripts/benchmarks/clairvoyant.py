"""The cache that knows the order: bytes, stalls, first batches over a slow link, beside mosaicml-streaming 0.13.0.

Real engines and readers in processes of their own, nginx behind a token bucket and a latency, in a network namespace.
Every byte that is counted was counted by the server. F10 (the limit is kept) is taken from every run of the others.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import machine
from clairvoyant_figures import FIGURES
from clairvoyant_stage import PEER, ROOT, Stage

from tests.servers import Unavailable
from tests.servers.link import enter_namespace


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer points of each figure")
    parser.add_argument("--only", metavar="F1,F3,…", help=f"of {', '.join([*FIGURES, 'F10'])}")
    parser.add_argument("--json", help="write the measurements here")
    options = parser.parse_args()
    wanted = options.only.split(",") if options.only else list(FIGURES)
    unknown = sorted(set(wanted) - set(FIGURES))
    if unknown:
        parser.error(f"no figure {', '.join(unknown)}: there are {', '.join(FIGURES)}")
    try:
        enter_namespace()
    except Unavailable as error:
        raise SystemExit(f"bench: {error}") from None
    if {"peer", "mounted-peer"} & set(wanted) and not PEER.exists():
        subprocess.run([str(ROOT / "scripts" / "peer")], check=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # servers, mounts and caches end with their blocks
    described = machine.description()
    print(json.dumps(described), flush=True)
    failed = []
    started = time.perf_counter()
    with Stage.open(options.quick) as stage:
        for figure in dict.fromkeys(FIGURES[name] for name in wanted):
            began = time.perf_counter()
            print(f"{(figure.__doc__ or '').strip()}", flush=True)
            try:
                figure(stage)
            except (RuntimeError, subprocess.CalledProcessError) as error:
                failed.append(figure.__name__)
                print(f"FAILED {figure.__name__}: {error}", flush=True)
            print(f"       ({time.perf_counter() - began:.0f} s)", flush=True)
        if stage.peaks:
            stage.row("F10", f"peak disk / limit, highest of {len(stage.peaks)} runs", max(stage.peaks), 1.0)
    missed = sum(not row.good for row in stage.rows)
    seconds = time.perf_counter() - started
    print(f"{len(stage.rows)} figures, {missed} missed, {len(failed)} could not be taken, {seconds:.0f} s")
    if options.json:
        rows = [
            {"figure": row.figure, "text": row.text, "measured": row.measured, "bar": row.bar, "at_least": row.at_least}
            for row in stage.rows
        ]
        record = {"machine": described, "rows": rows, "notes": stage.notes, "failed": failed, "seconds": seconds}
        Path(options.json).write_text(json.dumps(record, indent=1))
    return 1 if missed or failed else 0


if __name__ == "__main__":
    sys.exit(main())
