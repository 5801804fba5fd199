"""mosaicml-streaming itself, reading through a mount that is told its order."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.mount.harness import why_not_mountable
from tests.mount.host import Host, until
from tests.peer.alone import alone

from .test_mounted import places

PYTHON = Path(__file__).resolve().parents[2] / ".peer" / "bin" / "python"

pytestmark = [
    pytest.mark.peer,
    pytest.mark.mounted,
    pytest.mark.skipif(why_not_mountable() is not None, reason=str(why_not_mountable())),
    pytest.mark.skipif(not PYTHON.exists(), reason="mosaicml-streaming is not installed: run scripts/peer"),
]


def test_the_peer_is_followed(folder: str, tmp_path: Path) -> None:
    """Its two workers, in an epoch that nobody told of."""
    epoch = 2
    with alone(), Host(tmp_path) as host:
        mountpoint = host.mounted(folder, "--order", "shuffle=true,seed=7,batch_size=4,canonical_nodes=1,workers=2")
        reader = subprocess.Popen(
            [
                PYTHON,
                "-P",
                "-W",
                "ignore",
                Path(__file__).with_name("peer_side.py"),
                mountpoint,
                str(epoch),
                "2",
                "30",
                "50",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path)},
        )
        assert reader.stdin is not None
        assert reader.stdout is not None
        for line in ("30", "50"):
            assert reader.stdout.readline().strip() == line
            # workers read ahead of the loader
            until(lambda line=line: [at >= (epoch, int(line) // 2) for at in places(host).values()] == [True, True])
            reader.stdin.write("\n")
            reader.stdin.flush()
        assert {number for number, _ in places(host).values()} <= {epoch, epoch + 1}
        assert reader.wait(60) == 0
        reader.stdin.close()
        reader.stdout.close()
