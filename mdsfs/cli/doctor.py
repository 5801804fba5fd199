"""`mdsfs doctor`: looks at everything that a mount needs, says what to fix, and measures what is the bottleneck."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from streaming.sizes import format_size

from .arguments import default_cache_dir, seconds
from .store import add_store_options, remote_options

if TYPE_CHECKING:
    import argparse

    from mdsfs.doctor.findings import Finding
    from mdsfs.doctor.rates import Rate

__all__ = ["add_parser", "run"]

_SIGNS = {"ok": "ok  ", "warn": "WARN", "fail": "FAIL"}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "doctor",
        help="check this host and a source, and say what to fix",
        description="Check kernel, FUSE, limits, cache disk and, with SOURCE, the store; measure where time goes.",
        epilog="examples:\n  mdsfs doctor s3://bucket/dataset --cache-dir /nvme/cache\n  mdsfs doctor\n\n"
        "The exit code is 0 without a FAIL, else 1.",
    )
    add = parser.add_argument
    add("source", metavar="SOURCE", nargs="?", help="also check this source: endpoint, credentials, clock, rates")
    add("--cache-dir", metavar="DIR", type=Path, help="default: as for mdsfs mount")
    add("--seconds", metavar="SECONDS", type=seconds, default=2.0, help="for each measurement (2)")
    add("--no-rates", action="store_true", help="check only, measure nothing")
    add("--json", action="store_true", help="findings and rates as JSON")
    add_store_options(parser)


def run(args: argparse.Namespace) -> int:
    """Check, measure, print."""
    from mdsfs.doctor import cache, host, rates, source

    cache_dir = (args.cache_dir or default_cache_dir()).absolute()
    options = remote_options(args)
    findings = [*host.check(), *cache.check(cache_dir)]
    index, dataset = None, None
    if args.source:
        found, index, dataset = source.check(args.source, options)
        findings += found
    measured: list[Rate] = []
    if not args.no_rates:
        measured = rates.measure(cache_dir, dataset if index else None, options, index, args.seconds)
        findings += rates.judge(measured)
    if args.json:
        print(
            json.dumps({"findings": [each.shown() for each in findings], "rates": [each.shown() for each in measured]})
        )
    else:
        _print(findings, measured)
    return 1 if any(each.level == "fail" for each in findings) else 0


def _print(findings: list[Finding], measured: list[Rate]) -> None:
    width = max(len(each.what) for each in findings)
    for each in findings:
        print(f"{_SIGNS[each.level]}  {each.what:<{width}}  {each.found}")
        if each.fix:
            print(f"      {'':<{width}}  → {each.fix}")
    if measured:
        print()
        longest = max(len(each.name) for each in measured)
        for rate in measured:
            each_read = f"   {rate.seconds_per_read * 1e3:8.2f} ms a read" if rate.seconds_per_read else ""
            print(f"{rate.name:<{longest}}  {format_size(int(rate.bytes_per_second)):>10}/s{each_read}   {rate.what}")
    sys.stdout.flush()
