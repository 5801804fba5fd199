"""Owns remotes that are S3 buckets, or prefixes in them: data by our own reader, listing and writing through boto3."""

from __future__ import annotations

import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, TypeVar

from streaming.errors import (
    CredentialsRefusedError,
    EndpointUnreachableError,
    ReadTimeoutError,
    RemoteError,
)
from streaming.remote.interface import ObjectInfo, RangeReader, Remote, check_key, is_key
from streaming.remote.retrying import Attempts
from streaming.remote.s3_answers import Place, Refusal, error_of, read_client_error
from streaming.remote.s3_many import ManyRanges
from streaming.remote.s3_reader import S3RangeReader
from streaming.remote.s3_session import S3Session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from streaming.remote.interface import SmallRange
    from streaming.remote.options import RemoteOptions

T = TypeVar("T")

# below it one request writes the object; above it parts are sent one after another (writers run several puts at once)
_MULTIPART_FROM = 64 << 20
_PART = 16 << 20
_RENEWALS_APART = 5.0


class _Access:
    """The session of a bucket, shared by all its prefixes: credentials are found, and connections opened, once."""

    def __init__(self, bucket: str, options: RemoteOptions) -> None:
        self._bucket, self._options = bucket, options
        self._session: S3Session | None = None
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._renewed_at = float("-inf")

    def session(self) -> S3Session:
        """See `S3Remote.session`."""
        if self._process != os.getpid():
            self._process, self._lock = os.getpid(), threading.Lock()
            if self._session is not None:
                self._session.pool.abandon()
                self._session = None
        session = self._session
        if session is not None:
            return session
        with self._lock:
            if self._session is None:
                self._session = S3Session(self._bucket, self._options, None, None)
            return self._session

    def renew(self, old: S3Session, region: str | None) -> bool:
        """See `S3Remote.renew`."""
        with self._lock:
            if self._session is not old:
                return True
            now = time.monotonic()
            if region is None:
                if now - self._renewed_at < _RENEWALS_APART:
                    return False
                self._renewed_at = now
            pool = old.pool if region is None else None
            self._session = S3Session(self._bucket, self._options, region or old.region, pool)
            return True


# Only as long as somebody uses it: who opens the bucket again later has credentials read anew.
_accesses: weakref.WeakValueDictionary[tuple[object, ...], _Access] = weakref.WeakValueDictionary()


def _access(bucket: str, options: RemoteOptions) -> _Access:
    # two threads may make one each at the same time: the later one is shared from then on
    key = (bucket, options, *options.identity(f"s3://{bucket}").values())
    found = _accesses.get(key)
    if found is None:
        found = _accesses[key] = _Access(bucket, options)
    return found


class S3Remote(Remote):
    """A bucket's prefix on any S3-compatible server."""

    def __init__(self, url: str, bucket: str, prefix: str, options: RemoteOptions) -> None:
        super().__init__(url, options)
        self.bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._access = _access(bucket, options)
        self._process = os.getpid()

    # ---- the session ------------------------------------------------------------------------------------------------

    def session(self) -> S3Session:
        """The session of this process; one that was made before a fork is left to the parent."""
        if self._process != os.getpid():
            self._process = os.getpid()
            self.counters.after_fork()
        return self._access.session()

    def prepare(self) -> None:
        """Import boto3 and find credentials and endpoint: a third of a second that a first read need not wait for."""
        self.session()

    def renew(self, old: S3Session, *, region: str | None = None) -> bool:
        """Credentials read anew, or the bucket's true region learnt; once, however many threads ask.

        False when credentials were read anew a moment ago: those that are simply wrong would cost that at each request.
        """
        return self._access.renew(old, region)

    # ---- reading ----------------------------------------------------------------------------------------------------

    def open_range(
        self,
        key: str,
        start: int = 0,
        stop: int | None = None,
        *,
        etag: str | None = None,
        size: int | None = None,
        deadline: float | None = None,
    ) -> RangeReader:
        """As in `Remote`; the request is made by the reader's first use, so that it can be cancelled at any time."""
        if start < 0 or (stop is not None and stop < start):
            raise ValueError(f"{start}-{stop} is not a range")
        full = self._prefix + check_key(key)
        return S3RangeReader(self, full, (start, stop), expected=(etag, size), deadline=deadline)

    def read_many(self, wanted: Sequence[SmallRange], taken: Callable[[int, memoryview], None]) -> ManyRanges:
        """As in `Remote`, with many requests under way at the same time."""
        return ManyRanges(self, wanted, [self._prefix + check_key(each.key) for each in wanted], taken)

    def stat(self, key: str) -> ObjectInfo:
        """By HEAD; since its refusals say nothing, they are asked for again by a GET."""
        full = self._prefix + check_key(key)
        with S3RangeReader(self, full, (0, None), expected=(None, None), deadline=None, method="HEAD") as reader:
            try:
                return ObjectInfo(key, reader.size, reader.etag, reader.mtime_ns)
            except (FileNotFoundError, PermissionError):
                pass
        with self.open_range(key) as reader:
            return ObjectInfo(key, reader.size, reader.etag, reader.mtime_ns)

    def list(self, prefix: str = "", *, recursive: bool = True) -> Iterator[ObjectInfo]:
        """As in `Remote`, page by page; keys that are no keys of ours (folder markers) are left out."""
        asked = {"Bucket": self.bucket, "Prefix": self._prefix + prefix}
        if not recursive:
            asked["Delimiter"] = "/"
        if self.session().pays:
            asked["RequestPayer"] = "requester"
        while True:
            page = self._call(asked["Prefix"], lambda client: client.list_objects_v2(**asked))
            yield from sorted(self._objects(page), key=lambda found: found.key.encode())
            if not page.get("IsTruncated") or not page.get("NextContinuationToken"):
                return
            asked["ContinuationToken"] = page["NextContinuationToken"]

    def _objects(self, page: dict[str, Any]) -> Iterator[ObjectInfo]:
        for item in page.get("Contents", ()):
            key = item["Key"].removeprefix(self._prefix)
            if is_key(key):
                mtime_ns = int(item["LastModified"].timestamp() * 1e3) * 1_000_000
                yield ObjectInfo(key, item["Size"], _quoted(item.get("ETag")), mtime_ns)
        for item in page.get("CommonPrefixes", ()):
            yield ObjectInfo(item["Prefix"].removeprefix(self._prefix), 0, None, 0)

    # ---- writing ----------------------------------------------------------------------------------------------------

    def put(self, key: str, data: bytes | Path, *, progress: Callable[[int], None] | None = None) -> None:
        """As in `Remote`; when an attempt fails, `progress` is told a negative number and starts over."""
        full = self._prefix + check_key(key)
        extra = {"RequestPayer": "requester"} if self.session().pays else {}
        if acl := os.environ.get("S3_CANNED_ACL"):
            extra["ACL"] = acl
        if isinstance(data, bytes):
            self._call(full, lambda client: client.put_object(Bucket=self.bucket, Key=full, Body=data, **extra))
            if progress:
                progress(len(data))
            return
        self._call(full, lambda client: self._upload(client, full, data, extra, progress))

    def _upload(
        self, client: Any, full: str, path: Path, extra: dict[str, str], progress: Callable[[int], None] | None
    ) -> None:
        from boto3.s3.transfer import TransferConfig

        # threads of its own could not be started while the interpreter shuts down, when a writer may still be flushing
        config = TransferConfig(multipart_threshold=_MULTIPART_FROM, multipart_chunksize=_PART, use_threads=False)
        sent = 0

        def count(piece: int) -> None:
            nonlocal sent
            sent += piece
            if progress:
                progress(piece)

        try:
            with path.open("rb") as file:
                client.upload_fileobj(file, self.bucket, full, ExtraArgs=extra, Config=config, Callback=count)
        except BaseException:
            if sent and progress:
                progress(-sent)
            raise

    def delete(self, key: str) -> None:
        """As in `Remote`."""
        full = self._prefix + check_key(key)
        extra = {"RequestPayer": "requester"} if self.session().pays else {}
        self._call(full, lambda client: client.delete_object(Bucket=self.bucket, Key=full, **extra))

    # ---- calls through boto3 ----------------------------------------------------------------------------------------

    def _call(self, key: str, action: Callable[[Any], T]) -> T:
        """One boto3 call with our attempts, and its errors as ours."""
        import botocore.exceptions as causes

        options = self.options
        attempts = Attempts(options.attempts, options.total_timeout, first_pause=options.retry_pause)
        renewed = False
        while True:
            session = self.session()
            place = Place(session.endpoint, self.bucket, key, session.anonymous)
            self.counters.add("requests")
            after = None
            error: RemoteError
            try:
                return action(session.client)
            except causes.ClientError as cause:
                refusal = read_client_error(cause.response)
                error, after, passing = error_of(refusal, place), refusal.retry_after, refusal.passing
                if not renewed and self._renewed_for(refusal, session):
                    renewed = True
                    continue
                reason: Exception = cause
            except (causes.BotoCoreError, RecursionError) as cause:
                error, reason = _named(cause, place), cause
                passing = isinstance(error, (EndpointUnreachableError, ReadTimeoutError))
            pause = attempts.spend(after) if passing else None
            if pause is None:
                self.counters.add("errors")
                raise error from reason
            self.counters.add("retries")
            time.sleep(pause)

    def _renewed_for(self, refusal: Refusal, session: S3Session) -> bool:
        if refusal.region not in (None, session.region):
            return self.renew(session, region=refusal.region)
        return refusal.stale_credentials and self.renew(session)


def _quoted(etag: str | None) -> str | None:
    """As in the header: some servers list ETags without their quotes."""
    return f'"{etag}"' if etag and not etag.endswith('"') else etag


def _named(cause: Exception, place: Place) -> RemoteError:
    import botocore.exceptions as causes

    # botocore follows a server that redirects to itself, as deep as Python lets it
    if RecursionError in (type(cause), type(cause.__context__)):
        return RemoteError(f"{place}: this server does not speak S3 here; listing and writing need one that does")
    if isinstance(cause, causes.ReadTimeoutError):
        return ReadTimeoutError(f"{place}: the server was silent for too long; try again later")
    if isinstance(cause, (causes.ConnectionError, causes.HTTPClientError)):
        return EndpointUnreachableError(f"{place}: no connection; check the endpoint's address and the network")
    if isinstance(cause, (causes.NoCredentialsError, causes.PartialCredentialsError, causes.CredentialRetrievalError)):
        return CredentialsRefusedError(f"{place}: no usable credentials ({cause}); check the profile")
    return RemoteError(f"{place}: {cause}")
