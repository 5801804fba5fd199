"""What every storage server of the tests offers, and how child processes are started and ended."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Child", "StorageServer", "Unavailable", "clean_environment", "free_port"]

ACCESS, SECRET, REGION = "TESTKEYID", "testsecrettestsecret", "us-east-1"
# variables of the machine that would change what a child of ours talks to, or which certificates it insists on
FOREIGN = (
    *("AWS_", "S3_", "MOSAICML_", "SSL_CERT", "CURL_CA", "REQUESTS_CA"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"),
)


class Unavailable(Exception):
    """This server can't run here; the text says why. Fixtures turn it into a skip that prints it."""


def free_port() -> int:
    """A TCP port on the loopback address that nobody listens on now.

    Below those that the kernel gives away: no connection takes it before a server does, or while one is started anew.
    """
    draw = random.SystemRandom()  # nobody's seed: another test process must not find the same one
    while True:
        port = draw.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def clean_environment(**more: str) -> dict[str, str]:
    """The process environment without anything that concerns object stores, plus what is given."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    return kept | more


class Child:
    """A server process of ours; `stop` ends exactly it."""

    def __init__(self, command: list[str], log: Path, environment: dict[str, str] | None = None) -> None:
        self.log = log
        with log.open("ab") as output:
            # in a session of its own Ctrl-C leaves it to the fixture, and the kernel ends it when the tests are killed
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *command],
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )

    def wait_ready(self, ready: Callable[[], object], seconds: float = 120.0) -> None:
        """Return when `ready` no longer raises OSError; raise with the server's log when it dies or takes too long."""
        deadline = time.monotonic() + seconds
        while True:
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"server did not start: {self.log.read_text(errors='replace')[-2000:]}")
            with contextlib.suppress(OSError):
                ready()
                return
            time.sleep(0.02)  # a foreign process: its port is all there is to look at

    def wait_port(self, port: int) -> None:
        self.wait_ready(lambda: socket.create_connection(("127.0.0.1", port), 1).close())

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class StorageServer:
    """An S3-compatible server with one bucket. `put` and `delete` bypass the code under test."""

    name = "server"
    bucket = "bucket"
    checks_signatures = True
    lists = True
    endpoint: str

    def start(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def variables(self) -> dict[str, str]:
        """What a client needs in its environment to use this server."""
        return self.variables_for(self.endpoint)

    def variables_for(self, endpoint: str) -> dict[str, str]:
        """The same through another address (a proxy in front of the server)."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": REGION,
            "S3_ENDPOINT_URL": endpoint,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @property
    def environment(self) -> dict[str, str]:
        """A whole environment for a child process that uses this server."""
        return clean_environment(**self.variables)

    def client(self) -> Any:
        """A plain boto3 client."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=ACCESS,
            aws_secret_access_key=SECRET,
            region_name=REGION,
            config=Config(
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def url(self, key: str = "") -> str:
        return f"s3://{self.bucket}/{key}"

    def put(self, key: str, data: bytes | Path) -> None:
        body = data.read_bytes() if isinstance(data, Path) else data
        client = self.client()
        client.put_object(Bucket=self.bucket, Key=key, Body=body)
        client.close()

    def put_tree(self, prefix: str, folder: Path) -> None:
        """Every file below a folder, under prefix/."""
        client = self.client()
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                key = (
                    f"{prefix}/{path.relative_to(folder).as_posix()}" if prefix else path.relative_to(folder).as_posix()
                )
                client.put_object(Bucket=self.bucket, Key=key, Body=path.read_bytes())
        client.close()

    def delete(self, key: str) -> None:
        client = self.client()
        client.delete_object(Bucket=self.bucket, Key=key)
        client.close()
