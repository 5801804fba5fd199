"""What a remote does when the server, or the way to it, misbehaves: right bytes or a clear error, in time."""

from __future__ import annotations

import itertools
import random
import threading
import time
from typing import TYPE_CHECKING

import pytest

from streaming.errors import (
    CredentialsRefusedError,
    ObjectChangedError,
    ObjectMissingError,
    ReadTimeoutError,
    RemoteError,
    ThrottledError,
)
from streaming.remote import open_remote
from tests.mount.host import until
from tests.remote.conftest import Store, quick
from tests.servers import Fault, FaultProxy

if TYPE_CHECKING:
    from streaming.remote import RangeReader

DATA = random.Random(2).randbytes(1_500_000)
Faulty = tuple[Store, FaultProxy]


def drain(reader: RangeReader) -> None:
    """Read to the end."""
    buffer = memoryview(bytearray(1 << 16))
    while reader.readinto(buffer):
        pass


@pytest.mark.parametrize(
    ("status", "code"),
    [(503, "SlowDown"), (500, "InternalError"), (429, "TooManyRequests"), (502, ""), (400, "RequestTimeout")],
)
def test_bursts_pass(faulty: Faulty, status: int, code: str) -> None:
    """Refusals that pass are tried again, and counted."""
    store, proxy = faulty
    store.put("x", DATA)
    proxy.add(Fault("status", times=2, status=status, code=code))
    assert store.remote.read("x", start=7, stop=900_000)[0] == DATA[7:900_000]
    assert store.remote.counters.snapshot()["retries"] == 2


def test_lasting_overload(faulty: Faulty) -> None:
    """An overloaded server is named as that, after the attempts allowed and no more."""
    store, proxy = faulty
    store.put("x", DATA)
    proxy.add(Fault("status"))
    with pytest.raises(ThrottledError, match=r"503 SlowDown.*try again later"):
        store.remote.read("x")
    assert len(proxy.seen("x")) == store.remote.options.attempts


@pytest.mark.parametrize("kind", ["reset", "truncate"])
@pytest.mark.parametrize("after", [0, 1, 300_000])
def test_broken_bodies_resume(faulty: Faulty, kind: str, after: int) -> None:
    """A body that breaks is resumed where it broke: nothing is lost, doubled or fetched again."""
    store, proxy = faulty
    store.put("x", DATA)
    proxy.add(Fault(kind, times=2, after=after))
    assert store.remote.read("x", start=1000, stop=1_400_000)[0] == DATA[1000:1_400_000]
    asked = [request.range for request in proxy.seen("x")]
    assert len(asked) == 3
    assert all(after != 300_000 or first != later for first, later in itertools.pairwise(asked))


@pytest.mark.parametrize("kind", ["reset", "truncate"])
def test_bodies_that_always_break(faulty: Faulty, kind: str) -> None:
    """A server whose bodies never arrive is given up, without short data."""
    store, proxy = faulty
    store.put("x", DATA)
    proxy.add(Fault(kind, after=0))
    with pytest.raises(RemoteError, match="x"):
        store.remote.read("x")
    assert len(proxy.seen("x")) == store.remote.options.attempts


def test_stall_is_left(faulty: Faulty) -> None:
    """A silent server is left after the read timeout, and the next connection goes on."""
    store, proxy = faulty
    store.put("x", DATA)
    proxy.add(Fault("stall", times=1, after=200_000))
    # it may be as slow on a loaded machine: then it is left once more
    remote = open_remote(store.remote.url, quick(read_timeout=0.3, attempts=100))
    assert remote.read("x")[0] == DATA
    proxy.clear()


@pytest.mark.parametrize("kind", ["hang", "stall"])
def test_deadline(faulty: Faulty, kind: str) -> None:
    """A caller's deadline holds whatever the server does, long before the reader's own patience ends."""
    store, proxy = faulty
    store.put("x", DATA)
    proxy.add(Fault(kind, after=1000))
    began = time.monotonic()
    with (
        pytest.raises(ReadTimeoutError, match="x"),
        store.remote.open_range("x", deadline=began + 0.5) as reader,
    ):
        drain(reader)
    assert time.monotonic() - began < store.remote.options.read_timeout
    proxy.clear()


@pytest.mark.parametrize("kind", ["hang", "stall"])
def test_cancel_wakes(faulty: Faulty, kind: str) -> None:
    """Cancelling from another thread ends a read that waits for the server."""
    store, proxy = faulty
    store.put("x", DATA)
    proxy.add(Fault(kind, after=0))
    reader = store.remote.open_range("x")
    raised: list[RemoteError] = []

    def read() -> None:
        try:
            reader.readinto(memoryview(bytearray(100)))
        except RemoteError as error:
            raised.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    until(lambda: proxy.seen("x"))
    reader.cancel()
    thread.join()
    assert "cancelled" in str(raised[0])
    proxy.clear()


def test_range_ignored(faulty: Faulty) -> None:
    """A server that answers the whole object to a range costs bytes, never correctness."""
    store, proxy = faulty
    if store.kind == "rclone":
        pytest.skip("the signature covers Range: a signed server refuses what the proxy would do")
    store.put("x", DATA)
    proxy.add(Fault("no-range"))
    assert store.remote.read("x", start=400_000, stop=400_100)[0] == DATA[400_000:400_100]
    assert store.remote.read("x", start=0, stop=100)[0] == DATA[:100]


@pytest.mark.parametrize("kind", ["etag", "no-if-match"])
def test_versions_never_mix(faulty: Faulty, kind: str) -> None:
    """An object replaced in mid-body ends the read, also on a server that ignores If-Match."""
    store, proxy = faulty
    store.put("x", DATA)
    proxy.add(Fault("truncate", times=1, after=300_000))
    if kind == "etag" or store.kind != "rclone":  # rclone ignores If-Match by itself, and its signature covers it
        proxy.add(Fault(kind))
    buffer = memoryview(bytearray(1 << 16))
    with store.remote.open_range("x") as reader:
        assert reader.readinto(buffer)
        if kind == "no-if-match":
            store.delete("x")
            store.put("x", DATA[::-1] + b"1")
        with pytest.raises(ObjectChangedError, match="replaced"):
            drain(reader)
    assert store.remote.counters.snapshot()["bytes"] <= 300_000


def test_later_requests_name_the_version(faulty: Faulty) -> None:
    """Every request after the first answer carries If-Match, and none is a HEAD."""
    store, proxy = faulty
    store.put("x", DATA)
    proxy.add(Fault("truncate", times=2, after=100_000))
    store.remote.read("x")
    etag = store.remote.read("x", start=0, stop=1)[1].etag
    proxy.clear()
    store.remote.read("x", start=5, stop=9, etag=etag)
    asked = [request.headers.get("if-match") for request in proxy.seen("x")]
    assert asked == [None, etag, etag, None, etag]
    assert not proxy.seen("x", method="HEAD")


def test_permanent_refusals_are_not_repeated(faulty: Faulty) -> None:
    """A missing object or a refused key costs one request."""
    store, proxy = faulty
    store.put("x", DATA)
    with pytest.raises(ObjectMissingError, match="missing"):
        store.remote.read("missing")
    assert len(proxy.seen("missing")) == 1
    proxy.add(Fault("status", status=403, code="AccessDenied"))
    with pytest.raises(CredentialsRefusedError) as refused:
        store.remote.read("x")
    assert len(proxy.seen("x")) == 1
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("what", ["refused", "deleted"])
def test_gone_in_mid_body(faulty: Faulty, what: str) -> None:
    """Rights that are taken away, or an object that is deleted, after half of it was read: said as what it is."""
    store, proxy = faulty
    store.put("x", DATA)
    proxy.add(Fault("truncate", times=1, after=300_000))
    expected = CredentialsRefusedError if what == "refused" else ObjectMissingError
    with store.remote.open_range("x") as reader:
        assert reader.readinto(memoryview(bytearray(10)))
        if what == "refused":
            proxy.add(Fault("status", status=403, code="AccessDenied"))
        else:
            store.delete("x")
        with pytest.raises(expected, match="x"):
            drain(reader)
    assert len(proxy.seen("x")) == 2
