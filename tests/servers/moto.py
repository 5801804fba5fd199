"""moto inside the test process: starts in a quarter of a second; exact semantics, no signature check, no real speed."""

from __future__ import annotations

from typing import Any

from tests.servers.base import StorageServer


class MotoServer(StorageServer):
    """`ThreadedMotoServer` with one bucket."""

    name = "moto"
    checks_signatures = False

    def start(self) -> None:
        from moto.server import ThreadedMotoServer

        self._server: Any = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.endpoint = f"http://{host}:{port}"
        client = self.client()
        client.create_bucket(Bucket=self.bucket)
        client.close()

    def stop(self) -> None:
        client = self.client()  # its state is global to the process: leave none
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket):
            for entry in page.get("Contents", []):
                client.delete_object(Bucket=self.bucket, Key=entry["Key"])
        client.delete_bucket(Bucket=self.bucket)
        client.close()
        self._server.stop()
