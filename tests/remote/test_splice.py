"""Bytes that go from the store into a pipe, past this process: the same ones, whatever happens on the way."""

from __future__ import annotations

import os
import random
import threading
from typing import TYPE_CHECKING

import pytest

from streaming.errors import ObjectChangedError, RemoteError
from tests.servers import Fault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streaming.remote import RangeReader
    from tests.remote.conftest import Store
    from tests.servers import FaultProxy

    Take = Callable[..., bytes | None]

DATA = random.Random(4).randbytes(2_500_000)


@pytest.fixture
def take() -> Iterator[Take]:
    """What moves the next bytes of a range through a pipe."""
    read_end, write_end = os.pipe()

    def take(reader: RangeReader, most: int = 1 << 20) -> bytes | None:
        count = reader.splice(write_end, most)
        return None if count is None else os.read(read_end, count) if count else b""

    yield take
    os.close(read_end)
    os.close(write_end)


def drain(take: Take, reader: RangeReader) -> None:
    """Read to the end."""
    while take(reader):
        pass


@pytest.mark.parametrize(("start", "stop"), [(0, None), (0, 1), (4096, 8192), (4095, 2_400_001), (7, 7)])
@pytest.mark.parametrize("mixed", [False, True])
def test_ranges(store: Store, take: Take, start: int, stop: int | None, mixed: bool) -> None:
    """Alone, and in turns with reading into memory."""
    store.put("x", DATA)
    got, buffer = bytearray(), memoryview(bytearray(100_000))
    with store.remote.open_range("x", start, stop) as reader:
        while data := take(reader):
            got += data
            if mixed:
                got += buffer[: reader.readinto(buffer)]
        if store.kind in ("local", "file"):  # not from a socket
            assert data is None
            return
        assert take(reader) == b""
    assert got == DATA[start:stop]


@pytest.mark.parametrize("kind", ["reset", "truncate"])
@pytest.mark.parametrize("after", [0, 1, 300_000])
def test_broken_bodies_resume(faulty: tuple[Store, FaultProxy], take: Take, kind: str, after: int) -> None:
    """A body that breaks is resumed where it broke."""
    store, proxy = faulty
    store.put("x", DATA)
    proxy.add(Fault(kind, times=2, after=after))
    got = bytearray()
    with store.remote.open_range("x", 1000, 2_400_000) as reader:
        while data := take(reader):
            got += data
    assert got == DATA[1000:2_400_000]
    assert len(proxy.seen("x")) == 3


def test_versions_never_mix(faulty: tuple[Store, FaultProxy], take: Take) -> None:
    """An object that is replaced in mid-body is noticed when the rest is asked for."""
    store, proxy = faulty
    store.put("x", DATA)
    proxy.add(Fault("truncate", times=1, after=300_000))
    with store.remote.open_range("x") as reader:
        assert take(reader, 1000)
        store.put("x", DATA + b"more")  # of another size: some servers' ETags tell no more than size and second
        with pytest.raises(ObjectChangedError, match="replaced"):
            drain(take, reader)


def test_cancel_wakes(faulty: tuple[Store, FaultProxy], take: Take) -> None:
    """A reader that waits for a silent server is woken by another thread."""
    store, proxy = faulty
    store.put("x", DATA)
    proxy.add(Fault("stall", after=1000))
    with store.remote.open_range("x") as reader:
        assert take(reader, 1000)
        other = threading.Thread(target=reader.cancel)
        other.start()
        with pytest.raises(RemoteError, match="cancelled"):
            drain(take, reader)
        other.join()


def test_what_has_come_is_given_out_before_a_silence(faulty: tuple[Store, FaultProxy], take: Take) -> None:
    """A reader that wants more than a slow server has sent has what it has sent."""
    store, proxy = faulty
    store.put("x", DATA)
    proxy.add(Fault("stall", after=300_000))
    got = bytearray()
    with store.remote.open_range("x") as reader:
        while len(got) < 300_000:
            got += take(reader) or b""
    assert got == DATA[: len(got)]


def test_small_answers_on_the_same_connection(store: Store, take: Take) -> None:
    """After a large range the connection serves answers of a few bytes as well."""
    store.put("x", DATA)
    for start in (0, 100):
        with store.remote.open_range("x", start, 2_000_000) as reader:
            drain(take, reader)
        assert store.remote.read("x", start=5, stop=15)[0] == DATA[5:15]
