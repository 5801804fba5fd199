"""nginx over a folder: a plain HTTP server with exact Range, ETag and If-Match; unsigned, no listing, fast."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from tests.servers.base import Child, StorageServer, Unavailable, clean_environment, free_port

CONFIG = """
worker_processes 1; daemon off; pid {home}/pid; error_log {home}/error.log warn; {user}
events {{ worker_connections 512; }}
http {{
  access_log off; sendfile on; tcp_nopush on; tcp_nodelay on; keepalive_requests 100000; etag on;
  default_type application/octet-stream; types {{}} sendfile_max_chunk 2m;
  client_body_temp_path {home}/b; proxy_temp_path {home}/p; fastcgi_temp_path {home}/f;
  uwsgi_temp_path {home}/u; scgi_temp_path {home}/s;
  server {{ listen 127.0.0.1:{port}; root {root}; location / {{ }} }}
}}
"""


class NginxServer(StorageServer):
    """Serves ROOT/bucket/key; `put` writes the file. Clients are expected to be anonymous."""

    name = "nginx"
    checks_signatures = False
    lists = False
    config = CONFIG

    def __init__(self, root: Path | None = None) -> None:
        self._given = root

    def start(self) -> None:
        program = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
        if program is None:
            raise Unavailable("nginx is not installed (apt-get install nginx-light)")
        self._home = Path(tempfile.mkdtemp(prefix="mdsfs-nginx-"))
        self._home.chmod(0o755)
        self.root = self._given or self._home / "root"
        (self.root / self.bucket).mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        user = "user root;" if os.getuid() == 0 else ""
        config = self._home / "nginx.conf"
        config.write_text(self.config.format(home=self._home, port=self.port, root=self.root, user=user))
        self._child = Child(
            [program, "-c", str(config), "-p", str(self._home)], self._home / "log", clean_environment()
        )
        self._child.wait_port(self.port)

    def variables_for(self, endpoint: str) -> dict[str, str]:
        """No credentials: nginx would ignore a signature, so the client is told to send none."""
        return {
            "AWS_DEFAULT_REGION": "us-east-1",
            "S3_ENDPOINT_URL": endpoint,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "AWS_CONFIG_FILE": "/dev/null",
        }

    def put(self, key: str, data: bytes | Path) -> None:
        path = self.root / self.bucket / key
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(path.name + ".tmp")
        fresh.write_bytes(data.read_bytes() if isinstance(data, Path) else data)
        fresh.rename(path)

    def put_tree(self, prefix: str, folder: Path) -> None:
        for path in folder.rglob("*"):
            if path.is_file():
                self.put(f"{prefix}/{path.relative_to(folder).as_posix()}".lstrip("/"), path)

    def delete(self, key: str) -> None:
        (self.root / self.bucket / key).unlink()

    def stop(self) -> None:
        self._child.stop()
        shutil.rmtree(self._home, ignore_errors=True)
