"""nginx behind a link of a chosen latency and bandwidth, which counts what it sends.

The kernel has no delay queue, so the latency is nginx's: it waits one round trip before each answer, and two more
before the first of a connection, which a far server's handshake would take. The bandwidth is the kernel's token
bucket on the loopback device, so it may only be set in a network namespace of one's own: `enter_namespace` makes the
calling program start over in one (and in a mount namespace), which ends with its last process.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.servers.base import Unavailable
from tests.servers.nginx import NginxServer

__all__ = ["Link", "LinkedNginx", "Sent", "enter_namespace"]

MODULES = Path("/usr/lib/nginx/modules")
INSIDE = "MDSFS_BENCH_NAMESPACE"

CONFIG = f"""
load_module {MODULES}/ndk_http_module.so; load_module {MODULES}/ngx_http_lua_module.so;
worker_processes 1; daemon off; pid {{home}}/pid; error_log {{home}}/error.log warn; {{user}}
events {{{{ worker_connections 2048; }}}}
http {{{{
  access_log off; sendfile on; tcp_nopush on; tcp_nodelay on; keepalive_requests 1000000;
  keepalive_timeout 600s; etag on; default_type application/octet-stream; types {{{{}}}} sendfile_max_chunk 1m;
  lua_shared_dict link 1m;
  client_body_temp_path {{home}}/b; proxy_temp_path {{home}}/p; fastcgi_temp_path {{home}}/f;
  uwsgi_temp_path {{home}}/u; scgi_temp_path {{home}}/s;
  server {{{{
    listen 127.0.0.1:{{port}}; root {{root}};
    location / {{{{
      access_by_lua_block {{{{
        local latency = ngx.shared.link:get("latency") or 0
        if latency > 0 then ngx.sleep(ngx.var.connection_requests == "1" and 3 * latency or latency) end
      }}}}
      log_by_lua_block {{{{
        local counts = ngx.shared.link
        counts:incr("requests", 1, 0)
        counts:incr("bytes", tonumber(ngx.var.body_bytes_sent), 0)
        counts:incr("seconds", tonumber(ngx.var.request_time), 0)
      }}}}
    }}}}
  }}}}
  server {{{{
    listen unix:{{home}}/control;
    location / {{{{
      content_by_lua_block {{{{
        local link = ngx.shared.link
        local latency = ngx.req.get_uri_args().latency
        if latency then link:set("latency", tonumber(latency)) end
        ngx.say(string.format('{{{{"requests": %d, "bytes": %d, "seconds": %f}}}}',
          link:get("requests") or 0, link:get("bytes") or 0, link:get("seconds") or 0))
      }}}}
    }}}}
  }}}}
}}}}
"""


@dataclass(frozen=True, slots=True)
class Sent:
    """What a server has answered: requests, body bytes, and the seconds that all requests together took."""

    requests: int
    bytes: int
    seconds: float

    def __sub__(self, earlier: Sent) -> Sent:
        return Sent(self.requests - earlier.requests, self.bytes - earlier.bytes, self.seconds - earlier.seconds)


class LinkedNginx(NginxServer):
    """`latency` in seconds may be changed while it runs; `sent` are its own counters."""

    name = "nginx behind a link"
    config = CONFIG

    def start(self) -> None:
        if not (MODULES / "ngx_http_lua_module.so").exists():
            raise Unavailable("nginx has no lua (apt-get install libnginx-mod-http-lua)")
        super().start()

    def set_latency(self, latency: float) -> None:
        """Seconds before each answer, from now on."""
        self._control(f"/?latency={latency}")

    def sent(self) -> Sent:
        """What has been answered since the start; a request counts when it has ended."""
        return Sent(**self._control("/"))

    def _control(self, path: str) -> dict[str, Any]:
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX)
        with contextlib.closing(connection):
            connection.sock.connect(str(self._home / "control"))
            connection.request("GET", path)
            found: dict[str, Any] = json.loads(connection.getresponse().read())
            return found


@dataclass(slots=True)
class Link:
    """The loopback device of this network namespace, and the server behind it."""

    server: LinkedNginx
    bandwidth: float = 0.0
    latency: float = 0.0

    def shape(self, bandwidth: float, latency: float) -> None:
        """Bytes per second (0: as fast as the machine) and seconds, from now on."""
        if os.environ.get(INSIDE) != "1":
            raise Unavailable("the bandwidth of a loopback device is only set in a namespace of its own")
        if bandwidth != self.bandwidth:
            if self.bandwidth:
                _run("tc", "qdisc", "del", "dev", "lo", "root")
            if bandwidth:
                # A packet of the loopback device has up to 64 KiB: the bucket holds a few. What waits is bounded by
                # the senders' windows, not by losses, from which a sender would need 200 ms to recover.
                rate = ("rate", f"{int(bandwidth * 8)}bit", "burst", "256kb", "limit", "256mb")
                _run("tc", "qdisc", "add", "dev", "lo", "root", "tbf", *rate)
        self.server.set_latency(latency)
        self.bandwidth, self.latency = bandwidth, latency


def enter_namespace() -> None:
    """Start this program over, with the same arguments, in a network and a mount namespace of its own.

    Returns when it is in them.

    Raises Unavailable where the kernel or the user's rights don't allow it.
    """
    if os.environ.get(INSIDE) == "1":
        _run("ip", "link", "set", "lo", "up")
        # Copies of what others have mounted: as long as we kept them, the mounts' processes would not end.
        subprocess.run(["umount", "--all", "--lazy", "--types", "fuse.mdsfs"], check=False, capture_output=True)
        return
    for command in (["unshare", "--net", "--mount"], ["unshare", "--net", "--mount", "--map-root-user"]):
        probe = "ip link set lo up && tc qdisc add dev lo root tbf rate 1gbit burst 256kb limit 1mb"
        if subprocess.run([*command, "sh", "-c", probe], check=False, capture_output=True).returncode == 0:
            os.execvpe(command[0], [*command, sys.executable, *sys.argv], os.environ | {INSIDE: "1"})
    raise Unavailable("a network namespace with tc's token bucket is needed (root, iproute2, CONFIG_NET_SCH_TBF)")


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise Unavailable(f"{' '.join(command)}: {done.stderr.strip()}")
