"""Owns what an S3 server's answers mean: which refusals pass, which stay, and the sentence each one becomes.

Pure: status, headers and body in; values and exceptions out. A server's own message is not repeated, since it may carry
key ids and signatures; its code is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from streaming.errors import (
    BucketMissingError,
    CredentialsRefusedError,
    ObjectChangedError,
    ObjectMissingError,
    RemoteError,
    ThrottledError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from email.message import Message

_PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_PASSING_CODES = frozenset(
    {
        "InternalError",
        "OperationAborted",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
    }
)
_STALE_CODES = frozenset({"ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired"})
_IDENTITY_CODES = _STALE_CODES | {
    "AccessDenied",
    "AllAccessDisabled",
    "AuthorizationHeaderMalformed",
    "AuthorizationQueryParametersError",
    "CredentialsNotSupported",
    "InvalidAccessKeyId",
    "InvalidSecurity",
    "MissingSecurityHeader",
    "NotSignedUp",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "UnauthorizedAccess",
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a request went, for messages."""

    endpoint: str
    bucket: str
    key: str = ""
    anonymous: bool = False

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key} at {self.endpoint}"


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that is not the data."""

    status: int
    code: str
    region: str | None = None
    retry_after: float | None = None
    total: int | None = None

    @property
    def passing(self) -> bool:
        """Would the same request succeed a little later."""
        return self.status in _PASSING_STATUS or self.code in _PASSING_CODES

    @property
    def stale_credentials(self) -> bool:
        """Could credentials that are read anew help: temporary ones expire, and files are rewritten."""
        return self.code in _STALE_CODES or (self.status == 403 and self.code == "InvalidAccessKeyId")

    @property
    def named(self) -> str:
        """Status and code, as far as the server gave one."""
        return f"{self.status} {self.code}".strip()


def read_refusal(status: int, headers: Message, body: bytes) -> Refusal:
    """The refusal in an HTTP answer; the body need not be XML."""
    found = parse_content_range(headers.get("Content-Range", ""))
    return Refusal(
        status,
        _element(body, "Code"),
        headers.get("x-amz-bucket-region") or _element(body, "Region") or None,
        _seconds(headers.get("Retry-After")),
        found[2] if found else None,
    )


def read_client_error(response: Mapping[str, Any]) -> Refusal:
    """The refusal in a botocore ClientError."""
    metadata = response.get("ResponseMetadata", {})
    headers = metadata.get("HTTPHeaders", {})
    code = str(response.get("Error", {}).get("Code", ""))
    region = headers.get("x-amz-bucket-region") or response.get("Error", {}).get("Region")
    status = int(metadata.get("HTTPStatusCode", 0))
    return Refusal(status, "" if code.isdigit() else code, region, _seconds(headers.get("retry-after")))


def error_of(refusal: Refusal, place: Place) -> RemoteError:
    """The exception for a refusal that stays."""
    said = f"{place}: {{}} ({refusal.named}); {{}}"
    if refusal.code == "NoSuchBucket":
        return BucketMissingError(said.format("no such bucket", "check the bucket's name, the endpoint and the region"))
    if refusal.status == 404 or refusal.code == "NoSuchKey":
        return ObjectMissingError(said.format("no such object", "check the URL, and that the upload has finished"))
    if refusal.status == 412:
        return ObjectChangedError(
            said.format("the object was replaced since it was first read", "open the dataset again to read the new one")
        )
    if refusal.code == "InvalidObjectState":
        return RemoteError(said.format("the object is archived", "restore it first"))
    if refusal.passing:
        return ThrottledError(
            said.format("the server is overloaded or failing", "try again later, or with fewer --threads")
        )
    if refusal.status in (401, 403) or refusal.code in _IDENTITY_CODES or (place.anonymous and refusal.status == 400):
        return CredentialsRefusedError(said.format(*_refused(refusal, place)))
    return RemoteError(said.format("the server refused the request", "check the endpoint, the region and the URL"))


def _refused(refusal: Refusal, place: Place) -> tuple[str, str]:
    if refusal.code in _STALE_CODES:
        return "the credentials have expired", "renew them and try again"
    if refusal.code == "RequestTimeTooSkewed":
        return "this host's clock differs too much from the server's", "set the clock"
    if refusal.code in ("InvalidAccessKeyId", "SignatureDoesNotMatch"):
        return "the server does not accept this access key or its secret", "check the credentials and the profile"
    if place.anonymous:
        return "anonymous access is refused", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
    # without permission to list, S3 says 403 for an object that is not there as well
    return (
        "access is refused, or there is no such object and the key may not list the bucket",
        "check the policy (s3:GetObject, s3:ListBucket) and the URL",
    )


def parse_content_range(value: str) -> tuple[int, int, int | None] | None:
    """(start, stop exclusive, total) of a Content-Range; start and stop are 0 in `bytes */N`; None if unreadable."""
    match = re.fullmatch(r"\s*bytes\s+(?:(\d+)-(\d+)|\*)/(\d+|\*)\s*", value)
    if not match:
        return None
    first, last, total = match.groups()
    start, stop = (int(first), int(last) + 1) if first is not None else (0, 0)
    if stop < start:
        return None
    return start, stop, None if total == "*" else int(total)


def parse_http_date(value: str | None) -> int:
    """Nanoseconds of a Last-Modified header; 0 when it is absent or unreadable."""
    if not value:
        return 0
    try:
        return int(parsedate_to_datetime(value).timestamp()) * 1_000_000_000
    except ValueError:
        return 0


def _element(body: bytes, name: str) -> str:
    match = re.search(rf"<{name}>\s*([A-Za-z0-9._-]{{1,64}})\s*</{name}>", body.decode("utf-8", "replace"))
    return match.group(1) if match else ""


def _seconds(value: str | None) -> float | None:
    return float(value) if value and value.strip().isdigit() else None
