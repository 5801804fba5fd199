"""Who reads: signed, anonymous, paying, expired, refused. The proxy shows what was really sent."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from streaming.errors import BucketMissingError, CredentialsRefusedError, EndpointUnreachableError
from streaming.remote import RemoteOptions, open_remote
from tests.servers import Fault, FaultProxy, clean_environment, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers import StorageServer

# Few attempts; a server that is merely slow is waited for.
QUICK = {"attempts": 2, "connect_timeout": 60.0, "read_timeout": 60.0, "total_timeout": 120.0}


def use(server: StorageServer, monkeypatch: pytest.MonkeyPatch, endpoint: str | None = None, **other: str) -> None:
    """The server's own environment, with some of it changed."""
    for name, value in (server.variables_for(endpoint or server.endpoint) | other).items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        if name not in other:
            monkeypatch.setenv(name, "/dev/null")


def without_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a host where nobody has configured anything."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)


@pytest.fixture
def seen(moto: StorageServer) -> Iterator[FaultProxy]:
    """moto, which takes any key, behind a proxy that shows the headers."""
    with FaultProxy(moto.endpoint) as running:
        yield running


def test_signed_reads_are_accepted(rclone: StorageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that checks signatures accepts ours, for awkward keys and ranges too."""
    use(rclone, monkeypatch)
    rclone.put("signed/a b+c%é", b"0123456789")
    remote = open_remote("s3://bucket/signed", RemoteOptions.from_environment(**QUICK))
    assert remote.read("a b+c%é", start=2, stop=5)[0] == b"234"


def test_wrong_secret(rclone: StorageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong secret is refused credentials, at once, without a word of the secret or the key."""
    use(rclone, monkeypatch, AWS_SECRET_ACCESS_KEY="wrong-secret")
    rclone.put("x", b"1")
    remote = open_remote("s3://bucket", RemoteOptions.from_environment(**QUICK))
    with pytest.raises(CredentialsRefusedError, match="check the credentials") as caught:
        remote.read("x")
    text = str(caught.value)
    assert "wrong-secret" not in text
    assert "TESTKEYID" not in text
    assert rclone.endpoint in text
    assert remote.counters.snapshot()["retries"] == 0


def test_unknown_key_is_read_anew_only_now_and_then(rclone: StorageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that are simply wrong do not make every request look for other ones."""
    use(rclone, monkeypatch, AWS_ACCESS_KEY_ID="AKIDNOBODY")
    remote = open_remote("s3://bucket", RemoteOptions.from_environment(**QUICK))
    for _ in range(5):
        with pytest.raises(CredentialsRefusedError):
            remote.read("x")
    assert remote.counters.snapshot()["requests"] <= 6


def test_nobody_is_anonymous(nginx: StorageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without credentials a public object is read, unsigned."""
    nginx.put("public", b"open")
    with FaultProxy(nginx.endpoint) as proxy:
        use(nginx, monkeypatch, proxy.endpoint)
        without_keys(monkeypatch)
        assert open_remote("s3://bucket", RemoteOptions.from_environment(**QUICK)).read("public")[0] == b"open"
        assert [("authorization" in request.headers) for request in proxy.seen("public")] == [False]


def test_anonymous_on_request(moto: StorageServer, seen: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """With credentials at hand and anonymous=True nothing is signed, listings included."""
    use(moto, monkeypatch, seen.endpoint)
    moto.put("anon/x", b"1")
    for anonymous in (False, True):
        remote = open_remote("s3://bucket/anon", RemoteOptions.from_environment(anonymous=anonymous, **QUICK))
        with pytest.raises(CredentialsRefusedError) if anonymous else contextlib.nullcontext():
            remote.read("x")
        list(remote.list())
    assert ["authorization" in request.headers for request in seen.seen()] == [True, True, False, False]


def test_anonymous_refused(rclone: StorageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where anonymous access is refused, the message says that we had no credentials."""
    use(rclone, monkeypatch)
    without_keys(monkeypatch)
    remote = open_remote("s3://bucket", RemoteOptions.from_environment(**QUICK))
    with pytest.raises(CredentialsRefusedError, match=r"anonymous.*AWS_ACCESS_KEY_ID"):
        remote.read("x")
    with pytest.raises(CredentialsRefusedError, match="anonymous"):
        list(remote.list())


@pytest.mark.parametrize("status", [403, 400])
@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidAccessKeyId"])
def test_rotated_credentials(
    status: int,
    code: str,
    moto: StorageServer,
    seen: FaultProxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Credentials that were replaced on disk are found when the old ones are refused; nobody above notices."""
    if (status, code) == (400, "InvalidAccessKeyId"):
        pytest.skip("no server says that")
    file = tmp_path / "credentials"
    file.write_text("[default]\naws_access_key_id = AKIDOLD\naws_secret_access_key = s\n")
    use(moto, monkeypatch, seen.endpoint, AWS_SHARED_CREDENTIALS_FILE=str(file))
    without_keys(monkeypatch)
    moto.put("rotated", b"0123456789")
    remote = open_remote("s3://bucket", RemoteOptions.from_environment(**QUICK))
    assert remote.read("rotated", stop=5)[0] == b"01234"
    file.write_text("[default]\naws_access_key_id = AKIDNEW\naws_secret_access_key = s\n")
    seen.add(Fault("status", status=status, code=code, times=1))
    assert remote.read("rotated", start=5)[0] == b"56789"
    signed_by = [request.headers["authorization"].split("Credential=")[1][:7] for request in seen.seen("rotated")]
    assert signed_by == ["AKIDOLD", "AKIDOLD", "AKIDNEW"]


def test_expired_for_good(moto: StorageServer, seen: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials that stay expired are refused credentials, and the message says that they expired."""
    use(moto, monkeypatch, seen.endpoint)
    seen.add(Fault("status", status=400, code="ExpiredToken"))
    with pytest.raises(CredentialsRefusedError, match="expired"):
        open_remote("s3://bucket", RemoteOptions.from_environment(**QUICK)).read("x")
    assert len(seen.seen()) == 2


def test_denied_may_be_missing(moto: StorageServer, seen: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A 403 may mean that there is no such object; the message says both."""
    use(moto, monkeypatch, seen.endpoint)
    seen.add(Fault("status", status=403, code="AccessDenied"))
    with pytest.raises(CredentialsRefusedError, match=r"no such object.*s3:ListBucket"):
        open_remote("s3://bucket", RemoteOptions.from_environment(**QUICK)).read("x")
    assert len(seen.seen()) == 1


def test_the_payer_is_named(moto: StorageServer, seen: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads, listings and writes say who pays, by option or by variable; others do not."""
    use(moto, monkeypatch, seen.endpoint)
    moto.put("paid/x", b"1")

    def headers(**options: bool) -> set[str | None]:
        seen.reset_counters()
        remote = open_remote("s3://bucket/paid", RemoteOptions.from_environment(**options, **QUICK))
        remote.read("x")
        list(remote.list())
        remote.put("y", b"2")
        requests = [*seen.seen(), *seen.seen(method="PUT")]
        assert len(requests) == 3
        return {request.headers.get("x-amz-request-payer") for request in requests}

    assert headers() == {None}
    assert headers(requester_pays=True) == {"requester"}
    monkeypatch.setenv("MOSAICML_STREAMING_AWS_REQUESTER_PAYS", "other,bucket")
    assert headers() == {"requester"}


@pytest.mark.parametrize("kind", ["moto", "rclone"])
def test_missing_bucket(kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing bucket is not a missing object, by reading and by listing."""
    use(request.getfixturevalue(kind), monkeypatch)
    remote = open_remote("s3://nosuchbucket/x", RemoteOptions.from_environment(**QUICK))
    with pytest.raises(BucketMissingError, match="nosuchbucket"):
        remote.read("y")
    with pytest.raises(BucketMissingError, match="nosuchbucket"):
        list(remote.list())


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint where nobody listens is named, with what to check."""
    endpoint = f"http://127.0.0.1:{free_port()}"
    options = RemoteOptions(endpoint_url=endpoint, anonymous=True, attempts=2)
    remote = open_remote("s3://bucket/x", options)
    for ask in (lambda: remote.read("y"), lambda: list(remote.list()), lambda: remote.put("y", b"")):
        with pytest.raises(EndpointUnreachableError, match=endpoint):
            ask()


def test_unknown_host_is_not_tried_again() -> None:
    """A name that does not exist will not exist in a second either."""
    options = RemoteOptions(endpoint_url="http://nosuchhost.invalid:9000", anonymous=True)
    remote = open_remote("s3://bucket/x", options)
    with pytest.raises(EndpointUnreachableError, match="nosuchhost"):
        remote.read("y")
    assert remote.counters.snapshot()["retries"] == 0


FORKED = """
import os, sys
from streaming.remote import RemoteOptions, open_remote
remote = open_remote("s3://bucket", RemoteOptions.from_environment(attempts=1))
assert remote.read("forked")[0] == b"same"
before = remote.session()
child = os.fork()
assert remote.read("forked")[0] == b"same"
if child == 0:
    os._exit(0 if remote.session() is not before else 3)
assert remote.session() is before
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_fork(rclone: StorageServer) -> None:
    """A child of a fork makes its own session and connections; the parent keeps its own."""
    rclone.put("forked", b"same")
    environment = clean_environment(**rclone.variables)
    assert subprocess.run([sys.executable, "-c", FORKED], env=environment, check=False).returncode == 0
