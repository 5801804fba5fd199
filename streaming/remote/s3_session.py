"""Owns who we are towards S3: credentials, region, endpoint and addressing, all as boto3 finds them.

botocore decides once where a bucket lives and signs every request; the requests for data are then our own (see
`connections`), listing and writing go through the boto3 client.
"""

from __future__ import annotations

import io
import os
import ssl
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from streaming.errors import CredentialsRefusedError, MissingDependencyError, UnsupportedSourceError
from streaming.remote.connections import ConnectionPool
from streaming.remote.s3_signing import Signer

if TYPE_CHECKING:
    from streaming.remote.options import RemoteOptions

_SAFE = "/-_.~"


class S3Session:
    """One bucket as seen with one set of credentials, from one process."""

    def __init__(self, bucket: str, options: RemoteOptions, region: str | None, pool: ConnectionPool | None) -> None:
        try:
            import boto3
            import botocore.exceptions
            import botocore.session
        except ImportError as error:
            raise MissingDependencyError("reading s3:// needs boto3: pip install boto3") from error
        self.process = os.getpid()
        self.pays = options.pays_for(f"s3://{bucket}")
        try:
            inner = botocore.session.Session(profile=options.profile)
            session = boto3.Session(botocore_session=inner, region_name=region or options.region)
            self.region: str = session.region_name or "us-east-1"
            self.credentials = None if options.anonymous else session.get_credentials()
            self.client = _client(session, self.region, self.credentials is None, options)
            found = _url_of(self.client, bucket, "k")
        except botocore.exceptions.ProfileNotFound as error:
            raise CredentialsRefusedError(f"s3://{bucket}: {error}; check ~/.aws/config") from error
        except (
            botocore.exceptions.CredentialRetrievalError,
            botocore.exceptions.NoCredentialsError,
            botocore.exceptions.PartialCredentialsError,
        ) as error:
            raise CredentialsRefusedError(f"s3://{bucket}: {error}; check the profile and the variables") from error
        except (botocore.exceptions.BotoCoreError, ValueError) as error:
            raise UnsupportedSourceError(f"s3://{bucket}: {error}") from error
        self.anonymous = self.credentials is None
        self.base = found.partition("?")[0].removesuffix("k")
        self.endpoint = f"{urlsplit(self.base).scheme}://{urlsplit(self.base).netloc}"
        self._host = _host_of(self.endpoint)
        self._signer = Signer(self._host, self.region)
        self.pool = pool or ConnectionPool(self.endpoint, _tls(self.base, inner))

    def prepare(self, method: str, key: str, headers: dict[str, str]) -> tuple[str, dict[str, str]]:
        """The request target and the signed headers of a request without a body."""
        url = self.base + quote(key, safe=_SAFE)
        if self.pays:
            headers["x-amz-request-payer"] = "requester"
        if self.credentials is not None:
            from botocore.exceptions import BotoCoreError

            try:  # frozen: a refresh by another thread may not change the key between its halves
                frozen = self.credentials.get_frozen_credentials()
            except BotoCoreError as error:
                raise CredentialsRefusedError(f"{self.endpoint}: {error}; check the profile") from error
            path, now = url.removeprefix(self.endpoint), datetime.now(UTC)
            headers = self._signer.headers(method, path, headers, tuple(frozen)[:3], now)
        headers |= self.pool.headers()
        return self.pool.target(url.removeprefix(self.endpoint)), headers

    def get_request(self, key: str, start: int, stop: int, etag: str) -> bytes:
        """All of a GET of bytes start:stop of a version, as it is sent."""
        headers = {"Accept-Encoding": "identity", "Range": f"bytes={start}-{stop - 1}"}
        if not etag.startswith("W/"):  # weak ones never match by the rules
            headers["If-Match"] = etag
        target, headers = self.prepare("GET", key, headers)
        lines = [f"GET {target} HTTP/1.1", f"Host: {self._host}", *(f"{name}: {headers[name]}" for name in headers)]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _host_of(endpoint: str) -> str:
    """As it is signed, and named in requests: a port that goes without saying is left out."""
    parts = urlsplit(endpoint)
    usual = {"http": 80, "https": 443}[parts.scheme] == parts.port
    return parts.netloc.rpartition(":")[0] if usual else parts.netloc


def _url_of(client: Any, bucket: str, key: str) -> str:
    """Where an object lies, by all of botocore's rules about endpoints, regions and bucket names.

    They are applied to a request that is stopped before it is sent; presigning follows older rules.
    """
    from botocore.awsrequest import AWSResponse

    seen: list[str] = []

    def stop(request: Any, **_: Any) -> Any:
        seen.append(request.url)
        return AWSResponse(request.url, 200, {}, io.BytesIO())

    client.meta.events.register_first("before-send.s3.GetObject", stop)
    try:
        client.get_object(Bucket=bucket, Key=key)
    finally:
        client.meta.events.unregister("before-send.s3.GetObject", stop)
    return seen[0]


def _client(session: Any, region: str, unsigned: bool, options: RemoteOptions) -> Any:
    client = _configured(session, region, unsigned, options, _style(options.addressing, options.endpoint_url))
    if options.addressing == "auto" and not _is_amazon(client.meta.endpoint_url):
        # the endpoint came from a variable or the profile: such servers rarely answer to bucket.host names
        client = _configured(session, region, unsigned, options, "path")
    return client


def _configured(session: Any, region: str, unsigned: bool, options: RemoteOptions, style: str) -> Any:
    import botocore
    from botocore.config import Config

    config = Config(
        signature_version=botocore.UNSIGNED if unsigned else "s3v4",
        s3={"addressing_style": style},
        connect_timeout=options.connect_timeout,
        read_timeout=options.read_timeout,
        retries={"total_max_attempts": 1, "mode": "standard"},
        # servers that are not Amazon's answer checksums that botocore then refuses
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        max_pool_connections=64,
    )
    return session.client("s3", region_name=region, endpoint_url=options.endpoint_url, config=config)


def _style(addressing: str, endpoint: str | None) -> str:
    return "path" if addressing == "auto" and endpoint and not _is_amazon(endpoint) else addressing


def _is_amazon(endpoint: str) -> bool:
    host = urlsplit(endpoint).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))


def _tls(base: str, session: Any) -> ssl.SSLContext | None:
    if not base.startswith("https:"):
        return None
    bundle = session.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE")
    if bundle:
        folder = os.path.isdir(bundle)
        return ssl.create_default_context(cafile=None if folder else bundle, capath=bundle if folder else None)
    # botocore's own bundle for hosts without one, the host's for those whose proxy signs with a company's key
    from botocore.httpsession import where

    context = ssl.create_default_context()
    context.load_verify_locations(where())
    return context
