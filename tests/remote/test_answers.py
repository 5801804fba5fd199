"""What a server's answers mean, and how long we keep trying: pure functions."""

from __future__ import annotations

import time
from email.message import Message

import pytest

from streaming.errors import (
    BucketMissingError,
    CredentialsRefusedError,
    ObjectChangedError,
    ObjectMissingError,
    RemoteError,
    ThrottledError,
)
from streaming.remote.retrying import FIRST_PAUSE, LONGEST_PAUSE, Attempts, pause_after
from streaming.remote.s3_answers import (
    Place,
    error_of,
    parse_content_range,
    parse_http_date,
    read_client_error,
    read_refusal,
)

PLACE = Place("http://host:9000", "bkt", "data/x")


def xml(code: str, message: str = "AKIDSECRET said something", more: str = "") -> bytes:
    """An S3 error body."""
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message>{more}</Error>".encode()


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (404, "NoSuchKey", ObjectMissingError),
        (404, "NoSuchBucket", BucketMissingError),
        (404, "", ObjectMissingError),
        (403, "AccessDenied", CredentialsRefusedError),
        (403, "", CredentialsRefusedError),
        (403, "InvalidAccessKeyId", CredentialsRefusedError),
        (403, "SignatureDoesNotMatch", CredentialsRefusedError),
        (403, "RequestTimeTooSkewed", CredentialsRefusedError),
        (401, "", CredentialsRefusedError),
        (400, "ExpiredToken", CredentialsRefusedError),
        (400, "InvalidToken", CredentialsRefusedError),
        (400, "AuthorizationHeaderMalformed", CredentialsRefusedError),
        (412, "PreconditionFailed", ObjectChangedError),
        (500, "InternalError", ThrottledError),
        (502, "", ThrottledError),
        (503, "SlowDown", ThrottledError),
        (429, "", ThrottledError),
        (400, "RequestTimeout", ThrottledError),
        (403, "InvalidObjectState", RemoteError),
        (405, "MethodNotAllowed", RemoteError),
    ],
)
def test_refusals(status: int, code: str, error: type[RemoteError]) -> None:
    """Each refusal becomes one error, whose line names the place and the code, and not what the server said."""
    refusal = read_refusal(status, {}, xml(code) if code else b"<html>not S3</html>")
    found = error_of(refusal, PLACE)
    assert type(found) is error
    text = str(found)
    assert "s3://bkt/data/x at http://host:9000" in text
    assert str(status) in text
    assert code in text
    assert "AKIDSECRET" not in text
    assert "\n" not in text
    assert refusal.passing == (error is ThrottledError)


def test_anonymous_refusals() -> None:
    """Some servers answer 400 to unsigned requests: for them, and only for them, it means who are you."""
    refusal = read_refusal(400, {}, xml("InvalidRequest"))
    assert type(error_of(refusal, PLACE)) is RemoteError
    assert "AWS_ACCESS_KEY_ID" in str(error_of(refusal, Place("http://h", "bkt", "x", anonymous=True)))


def test_what_a_refusal_carries() -> None:
    """The bucket's region, the wait that the server asks for, and the object's size."""
    headers = Message()
    headers["X-Amz-Bucket-Region"] = "eu-west-1"
    headers["retry-after"] = "3"
    headers["Content-Range"] = "bytes */77"
    refusal = read_refusal(416, headers, b"")  # type: ignore[arg-type]  # as http.client hands them over
    assert (refusal.region, refusal.retry_after, refusal.total) == ("eu-west-1", 3.0, 77)
    malformed = read_refusal(400, {}, xml("AuthorizationHeaderMalformed", more="<Region>ap-south-1</Region>"))
    assert malformed.region == "ap-south-1"
    assert read_refusal(503, {"Retry-After": "soon"}, b"").retry_after is None


def test_refusals_through_boto3() -> None:
    """The same, as botocore reports it; a status that it took for a code is none."""
    response = {
        "Error": {"Code": "404", "Message": "Not Found"},
        "ResponseMetadata": {"HTTPStatusCode": 404, "HTTPHeaders": {"x-amz-bucket-region": "r", "retry-after": "2"}},
    }
    refusal = read_client_error(response)
    assert (refusal.status, refusal.code, refusal.region, refusal.retry_after) == (404, "", "r", 2.0)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("bytes 0-0/1", (0, 1, 1)),
        ("bytes 5-9/*", (5, 10, None)),
        ("bytes */12", (0, 0, 12)),
        ("bytes 9-5/12", None),
        ("bytes 1-/12", None),
        ("items 1-2/3", None),
        ("", None),
    ],
)
def test_content_range(value: str, found: tuple[int, int, int | None] | None) -> None:
    """What the header says, or that it can't be read."""
    assert parse_content_range(value) == found


def test_dates() -> None:
    """HTTP dates in nanoseconds; nonsense is no date."""
    assert parse_http_date("Thu, 01 Jan 1970 00:01:40 GMT") == 100 * 10**9
    assert parse_http_date("yesterday") == 0
    assert parse_http_date(None) == 0


def test_pauses_grow_and_spread() -> None:
    """Pauses double up to a bound, and two clients rarely wait equally long."""
    assert [pause_after(n, 1.0) for n in (1, 2, 3)] == [FIRST_PAUSE, FIRST_PAUSE * 2, FIRST_PAUSE * 4]
    assert pause_after(1, 0.0) == FIRST_PAUSE / 2
    assert pause_after(100, 1.0) == LONGEST_PAUSE
    assert [pause_after(n, 1.0, 0.1) for n in (1, 2)] == [0.1, 0.2]


def test_attempts_end() -> None:
    """The number of attempts, the time and the caller's deadline: whichever is used up first ends it."""
    attempts = Attempts(3, 60.0)
    assert [attempts.spend() is None for _ in range(3)] == [False, False, True]
    assert Attempts(9, 0.01).spend() is None, "the pause would be longer than the time left"
    late = Attempts(9, 60.0, deadline=time.monotonic() - 1)
    assert late.remaining() < 0
    assert late.spend() is None


def test_the_server_may_ask_for_a_longer_pause() -> None:
    """Retry-After is honoured, up to a bound."""
    pause = Attempts(9, 60.0).spend(asked=5.0)
    assert pause == 5.0
    assert Attempts(9, 60.0).spend(asked=3600.0) == LONGEST_PAUSE
