"""Many small ranges beside each other: right bytes or nothing, over every kind of remote."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING

import pytest

from streaming.remote import s3_many
from streaming.remote.interface import SmallRange
from tests.mount.host import until
from tests.servers import Fault, FaultProxy

if TYPE_CHECKING:
    from tests.remote.conftest import Store

DATA = random.Random(3).randbytes(200_000)
Faulty = tuple["Store", FaultProxy]
# A server that is merely slow is waited for.
LONG = 120.0


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_many, "PATIENCE", LONG)


def ranges(store: Store, count: int, key: str = "x") -> list[SmallRange]:
    """Ranges that lie apart, of the version that is there."""
    info = store.remote.stat(key)
    assert info.etag is not None
    step = len(DATA) // count
    return [SmallRange(key, at * step, at * step + step // 2, info.etag, info.size) for at in range(count)]


def read(store: Store, wanted: list[SmallRange]) -> dict[int, bytes]:
    """What came, by number; nothing came twice."""
    found: dict[int, bytes] = {}

    def taken(number: int, data: memoryview) -> None:
        assert number not in found
        found[number] = bytes(data)

    store.remote.read_many(wanted, taken).run()
    return found


def test_every_range_comes_once(store: Store) -> None:
    """More ranges than connections, of objects whose names need quoting."""
    store.put("a+b é.mds", DATA)
    wanted = ranges(store, 3 * s3_many.WIDTH, "a+b é.mds")
    found = read(store, wanted)
    assert [found[number] for number in range(len(wanted))] == [DATA[each.start : each.stop] for each in wanted]


def test_a_call_after_another_uses_its_connections(faulty: Faulty) -> None:
    """What was opened is kept, and each range was one request."""
    store, proxy = faulty
    store.put("x", DATA)
    wanted = ranges(store, 20)
    before = len(proxy.seen("x"))
    assert len(read(store, wanted)) == len(read(store, wanted)) == 20
    assert len(proxy.seen("x")) - before == 40


def test_another_version_does_not_come(store: Store) -> None:
    """Nor does what is not there; the others do."""
    store.put("x", DATA)
    store.put("y", DATA)
    good, other = ranges(store, 2), ranges(store, 1, "y")[0]
    store.put("y", DATA[::-1] + b"!")
    found = read(store, [good[0], other, good[1], good[0]._replace(key="nowhere")])
    assert sorted(found) == [0, 2]


@pytest.mark.parametrize("kind", ["status", "reset", "truncate", "etag", "no-range"])
def test_a_bad_answer_costs_its_own_range(faulty: Faulty, kind: str) -> None:
    """It is not tried again here, and the others come."""
    store, proxy = faulty
    store.put("x", DATA)
    wanted = ranges(store, 8)
    proxy.add(Fault(kind, times=1, after=10))
    found = read(store, wanted)
    assert len(found) >= 7  # a reset may overtake the bytes before it, and look like a kept connection's end
    assert all(found[number] == DATA[wanted[number].start : wanted[number].stop] for number in found)


def test_silence_is_not_waited_for(faulty: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has not come after the time that nothing has come in is left out."""
    store, proxy = faulty
    store.put("x", DATA)
    wanted = ranges(store, 8)
    proxy.add(Fault("hang", times=1))
    found: set[int] = set()

    def taken(number: int, _: memoryview) -> None:
        found.add(number)
        if len(found) == 7:  # what comes is waited for as long as it takes
            monkeypatch.setattr(s3_many, "PATIENCE", 0.2)

    store.remote.read_many(wanted, taken).run()
    assert len(found) == 7


def test_cancelling_ends_the_wait(faulty: Faulty) -> None:
    """From another thread, while the server is silent."""
    store, proxy = faulty
    store.put("x", DATA)
    wanted = ranges(store, 4)
    proxy.add(Fault("hang"))
    before = len(proxy.seen("x"))
    reader = store.remote.read_many(wanted, lambda *_: None)
    thread = threading.Thread(target=reader.run)
    thread.start()
    until(lambda: len(proxy.seen("x")) > before)
    reader.cancel()
    thread.join(LONG / 2)
    assert not thread.is_alive()
