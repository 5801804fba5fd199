"""Our signatures beside botocore's: the same headers for the same instant."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials

from streaming.remote.s3_signing import Signer


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("token", [None, "IQoJb3JpZ2luX2VjEA=="])
@pytest.mark.parametrize(
    ("host", "path"),
    [
        ("bucket.s3.eu-west-1.amazonaws.com", "/a/shard.00000.mds"),
        ("127.0.0.1:9000", "/bucket/a%2Bb%20%C3%A9%3D/~x-_.zstd"),
    ],
)
def test_the_same_as_botocore(method: str, token: str | None, host: str, path: str) -> None:
    """Quoted keys, ports, tokens, and headers with spaces; once more with the key that was derived before."""
    credentials = ReadOnlyCredentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", token)
    signer = Signer(host, "eu-west-1")
    for stop in (9, 99):
        more = {"Range": f"bytes=0-{stop}", "If-Match": '"a b"', "x-amz-request-payer": "requester"}
        request = AWSRequest(method, f"http://{host}{path}", headers=more)
        S3SigV4Auth(credentials, "s3", "eu-west-1").add_auth(request)
        now = datetime.strptime(request.headers["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        found = signer.headers(method, path, more, (credentials.access_key, credentials.secret_key, token), now)
        assert {name.lower(): value for name, value in found.items()} == {
            name.lower(): value for name, value in request.headers.items()
        }
