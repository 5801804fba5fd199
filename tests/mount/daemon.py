"""Runs one mount in the foreground for the tests: `python -m tests.mount.daemon CACHE_DIR MOUNTPOINT READ_TIMEOUT`.

Prints a line when it is mounted. What the command `mdsfs mount` adds (options, checks, going into the background) is
not here.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from mdsfs.mount.mounting import MountConfig, serve
from mdsfs.mount.operations import Ownership
from streaming.engine.spawn import EngineOptions


def main(cache_dir: str, mountpoint: str, read_timeout: str) -> int:
    logging.basicConfig(level="INFO")
    config = MountConfig(
        source="fake://source",
        mountpoint=mountpoint,
        engine=EngineOptions(cache_dir=Path(cache_dir)),
        identity={"endpoint": None},
        ownership=Ownership(os.geteuid(), os.getegid()),
        read_timeout=float(read_timeout),
    )
    return serve(config, lambda outcome: print("mounted", outcome.warnings, flush=True))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
