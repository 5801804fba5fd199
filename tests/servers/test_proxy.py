"""The fault proxy leaves nothing behind that a later test would be blamed for."""

from __future__ import annotations

import gc
import socket

from tests.servers import Fault, FaultProxy


def test_a_proxy_that_ends_leaves_no_connection_open() -> None:
    """Neither one that hangs nor one that was accepted just now: collected, an open socket is a warning."""
    with socket.create_server(("127.0.0.1", 0)) as upstream:
        url = f"http://127.0.0.1:{upstream.getsockname()[1]}"
        for count in (0, 1, 3, 8) * 6:
            with FaultProxy(url) as proxy:
                proxy.add(Fault("hang"))
                clients = [socket.create_connection(("127.0.0.1", proxy.port)) for _ in range(count)]
                for client in clients:
                    client.send(b"GET /bucket/x HTTP/1.1\r\nHost: here\r\n\r\n")
            for client in clients:
                client.close()
            gc.collect()
