"""Owns the signing of requests that carry nothing: AWS Signature Version 4, for GET and HEAD of objects.

botocore signs as well and as right, at ten times the processor time, which for ranges of a few kilobytes is more than
the rest of the request. The key that is derived from date, region and secret is kept as long as these are the same.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

__all__ = ["Credentials", "Signer"]

_EMPTY = hashlib.sha256(b"").hexdigest()


Credentials = tuple[str, str, str | None]
"""Key id, secret, and the token of a session."""


class _Day(NamedTuple):
    """What the signing key is derived from."""

    secret: str
    date: str
    region: str


class Signer:
    """Signs for one host and region; credentials are named with each request, since they are renewed."""

    def __init__(self, host: str, region: str) -> None:
        self._host, self._region = host, region
        self._derived: tuple[_Day, bytes] | None = None

    def __repr__(self) -> str:
        return f"Signer({self._host}, {self._region})"

    def headers(
        self, method: str, path: str, more: Mapping[str, str], credentials: Credentials, now: datetime
    ) -> dict[str, str]:
        """All headers of a request for a quoted path, but Host, which is signed too; `now` is in UTC."""
        key_id, secret, token = credentials
        stamp = now.strftime("%Y%m%dT%H%M%SZ")
        headers = {**more, "X-Amz-Date": stamp, "X-Amz-Content-SHA256": _EMPTY}
        if token:
            headers["X-Amz-Security-Token"] = token
        signed = {name.lower(): " ".join(value.split()) for name, value in headers.items()} | {"host": self._host}
        names = sorted(signed)
        listed = ";".join(names)
        canonical = "\n".join([method, path, "", *(f"{name}:{signed[name]}" for name in names), "", listed, _EMPTY])
        scope = f"{stamp[:8]}/{self._region}/s3/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        signature = hmac.digest(self._key(secret, stamp[:8]), text.encode(), "sha256").hex()
        headers["Authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={key_id}/{scope}, SignedHeaders={listed}, Signature={signature}"
        )
        return headers

    def _key(self, secret: str, date: str) -> bytes:
        day = _Day(secret, date, self._region)
        if self._derived is None or self._derived[0] != day:
            key = f"AWS4{secret}".encode()
            for part in (date, self._region, "s3", "aws4_request"):
                key = hmac.digest(key, part.encode(), "sha256")
            self._derived = day, key
        return self._derived[1]
