"""A source: its endpoint, the credentials, the clock, how long an answer takes, what its index says."""

from __future__ import annotations

import http.client
import itertools
import os
import socket
import ssl
import statistics
import time
from contextlib import closing
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from streaming.errors import (
    CredentialsRefusedError,
    DatasetError,
    EndpointUnreachableError,
    ObjectMissingError,
    SourceMissingError,
    StreamingError,
)
from streaming.mds.index import MAX_INDEX_BYTES, parse_index
from streaming.remote import open_remote
from streaming.remote.interface import join_url
from streaming.sizes import format_size

from .findings import Finding, fail, ok, warn

if TYPE_CHECKING:
    from streaming.mds.index import Index
    from streaming.remote import Remote
    from streaming.remote.options import RemoteOptions

__all__ = ["check", "clock_skew"]

# S3 refuses signatures that are fifteen minutes off.
SKEW_REFUSED, SKEW_WARNED = 900.0, 60.0
CONNECT_SECONDS = 10.0
LATENCIES = 5
# A store whose every answer takes this long needs many requests at once to fill a link.
SLOW = 0.25
LARGE_SHARD = 256 << 20
INDEX = "index.json"
# Of a folder of several datasets: so many objects are looked at for the first index.
MOST_LISTED = 10_000


def check(source: str, options: RemoteOptions) -> tuple[list[Finding], Index | None, str]:
    """Everything about a source, the index that was looked at, and the URL of its dataset: of several the first."""
    findings: list[Finding] = []
    try:
        remote = open_remote(source, options)
    except StreamingError as error:
        return [fail("source", str(error), "use s3://bucket/prefix, file:///path or a path")], None, source
    if source.startswith("s3://"):
        endpoint = options.endpoint_url or "https://s3.amazonaws.com"
        findings += _endpoint(endpoint)
        if findings[-1].level == "fail":
            return findings, None, source
    try:
        if (below := _first_below(remote)) is not None:
            findings.append(ok("datasets", f"none at {source} itself, {below} is looked at"))
            source = join_url(source, below)
            remote = open_remote(source, options)
        begun = time.monotonic()
        data, _ = remote.read(INDEX, limit=MAX_INDEX_BYTES)
        taken = time.monotonic() - begun
        index = parse_index(data)
    except StreamingError as error:
        return [*findings, _refused(error)], None, source
    if source.startswith("s3://"):
        findings.append(ok("credentials", "none are needed" if options.anonymous else "are accepted"))
    findings.append(
        ok("index", f"{len(index.shards):,} shards, {index.samples:,} samples, read in {taken * 1e3:.0f} ms")
    )
    findings.append(_listing(remote))
    findings.append(_latency(remote, index))
    findings += _shape(index)
    return findings, index, source


def _first_below(remote: Remote) -> str | None:
    """The folder of the first dataset below, where there is none at the source itself."""
    try:
        remote.stat(INDEX)
    except ObjectMissingError:
        for info in itertools.islice(remote.list(), MOST_LISTED):
            if info.key.endswith(f"/{INDEX}"):
                return info.key.removesuffix(f"/{INDEX}")
    except StreamingError:
        pass  # reading it will say more
    return None


def _refused(error: StreamingError) -> Finding:
    """What kept the index from being read; the message itself says what to look at."""
    fixes: tuple[tuple[type[StreamingError], str, str], ...] = (
        (
            CredentialsRefusedError,
            "credentials",
            "set them in the environment, in a profile or a role; see the message",
        ),
        (EndpointUnreachableError, "endpoint", "check --endpoint-url, the network and its proxy"),
        (SourceMissingError, "index", "check the URL, and that the upload has finished"),
        (DatasetError, "index", "write it again (streaming.base.util.merge_index), or fetch it again"),
    )
    for kind, what, fix in fixes:
        if isinstance(error, kind):
            return fail(what, str(error), fix)
    return fail("source", str(error), "see the message")


def _endpoint(endpoint: str) -> list[Finding]:
    address = urlsplit(endpoint)
    host, port = address.hostname or "", address.port or (443 if address.scheme == "https" else 80)
    try:
        begun = time.monotonic()
        with closing(socket.create_connection((host, port), CONNECT_SECONDS)):
            taken = time.monotonic() - begun
    except OSError as error:
        return [fail("endpoint", f"{endpoint}: {error}", "check --endpoint-url, the network and its proxy")]
    found = [ok("endpoint", f"{endpoint} answers in {taken * 1e3:.1f} ms")]
    try:
        skew = clock_skew(endpoint)
    except (OSError, http.client.HTTPException) as error:
        return [*found, fail("endpoint", f"{endpoint}: {error}", "check the certificate (AWS_CA_BUNDLE) and the proxy")]
    if skew is None:
        return [*found, warn("clock", "the store does not tell the time", "make sure that the clock is synchronised")]
    said = (
        f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the store's" if abs(skew) >= 1 else "as the store's"
    )
    if abs(skew) >= SKEW_REFUSED:
        return [*found, fail("clock", said, "set the clock (timedatectl set-ntp true): signed requests are refused")]
    if abs(skew) >= SKEW_WARNED:
        return [*found, warn("clock", said, "set the clock (timedatectl set-ntp true)")]
    return [*found, ok("clock", said)]


def clock_skew(endpoint: str) -> float | None:
    """Seconds that this host's clock is ahead of the store's; None if the store does not say. To the second."""
    address = urlsplit(endpoint)
    connection: http.client.HTTPConnection
    if address.scheme == "https":
        trusted = ssl.create_default_context(cafile=os.environ.get("AWS_CA_BUNDLE") or None)
        connection = http.client.HTTPSConnection(
            address.hostname or "", address.port, timeout=CONNECT_SECONDS, context=trusted
        )
    else:
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=CONNECT_SECONDS)
    with closing(connection):
        before = time.time()
        connection.request("HEAD", "/")
        answer = connection.getresponse()
        after = time.time()
    date = answer.headers.get("Date")
    if not date:
        return None
    try:
        theirs = parsedate_to_datetime(date).timestamp()
    except ValueError:
        return None
    # the header was cut to the second, some time between the two looks at our clock
    return 0.0 if before - 1 <= theirs + 1 and theirs <= after else (before + after) / 2 - (theirs + 0.5)


def _listing(remote: Remote) -> Finding:
    try:
        next(iter(remote.list("", recursive=False)), None)
    except StreamingError as error:
        return warn("listing", str(error), "allow it (s3:ListBucket) to mount several datasets at once, or other files")
    return ok("listing", "is permitted")


def _latency(remote: Remote, index: Index) -> Finding:
    shards = index.shards[:LATENCIES]
    if not shards:
        return warn("shards", "the index names none", "write samples before reading them")
    taken = []
    for shard in shards:
        info = shard.zip_data or shard.raw_data
        begun = time.monotonic()
        try:
            remote.get_range(info.basename, 0, 1, memoryview(bytearray(1)))
        except StreamingError as error:
            return fail("shards", str(error), "upload the shards that the index names, or fetch the index again")
        taken.append(time.monotonic() - begun)
    middle = statistics.median(taken)
    said = f"a first byte takes {middle * 1e3:.1f} ms"
    if middle > SLOW:
        return warn("latency", said, "read near the store, or use more --threads")
    return ok("latency", said)


def _shape(index: Index) -> list[Finding]:
    """What about the shards costs time or safety."""
    found = []
    compressions = {shard.compression for shard in index.shards}
    single = sorted(name for name in compressions if name is not None and not name.startswith("zstd"))
    if single:
        found.append(
            warn(
                "compression", f"{', '.join(single)}: shards can only be fetched whole", "mdsfs repack to seekable zstd"
            )
        )
    if any(not (shard.zip_data or shard.raw_data).hashes for shard in index.shards):
        found.append(
            warn("hashes", "the index has none for some shards", "write with hashes=['sha1'] or xxh64, or mdsfs repack")
        )
    largest = max((shard.raw_data.bytes for shard in index.shards), default=0)
    if largest > LARGE_SHARD:
        found.append(
            warn("shards", f"the largest has {format_size(largest)}", "64 MiB (size_limit=) are read in less time")
        )
    total = sum(shard.raw_data.bytes for shard in index.shards)
    found.append(ok("size", f"{format_size(total)} as shown"))
    return found
