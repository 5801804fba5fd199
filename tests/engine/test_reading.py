"""Reading through a real engine: right bytes in every form, few bytes fetched, each of them once."""

from __future__ import annotations

import os
import random
import re
import threading
from typing import TYPE_CHECKING

import pytest

from streaming.errors import (
    CacheLimitError,
    EngineRefusedError,
    EngineUnavailableError,
    ReadTimeoutError,
    SourceMissingError,
)
from streaming.remote import RemoteOptions

from .conftest import KIB, MIB, Engine, Reader, disk_bytes, write_dataset

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.servers import FaultProxy, StorageServer

    Start = Callable[..., Engine]


def some_reads(reader: Reader, count: int, seed: int = 1) -> None:
    """Random reads of random lengths, checked."""
    rng = random.Random(seed)
    for _ in range(count):
        file = rng.randrange(len(reader.data.raw))
        size = len(reader.data.raw[file])
        offset = rng.randrange(size)
        reader.check(file, offset, min(rng.randrange(1, 100_000), size - offset))


@pytest.mark.parametrize("form", ["raw", "zstd", "seekable"])
@pytest.mark.parametrize("verify", ["transport", "shard"])
@pytest.mark.parametrize("limit", [64 * MIB, 5 * MIB, 3 * MIB])
def test_bytes_are_right_in_every_form_and_the_limit_holds(
    start: Start, rclone: StorageServer, tmp_path: Path, form: str, verify: str, limit: int
) -> None:
    """Raw, zstd and seekable shards; transport and shard level; room for all, for two shards, for none."""
    data = write_dataset(tmp_path / "data", 3, 2 * MIB + 1234, form)
    prefix = f"{form}-{verify}-{limit}"
    rclone.put_tree(prefix, data.folder)
    engine = start(limit, "--verify", verify, env=rclone.variables)
    options = RemoteOptions(endpoint_url=rclone.endpoint)
    reader = Reader(engine.client(), rclone.url(prefix), data, options=options)
    some_reads(reader, 60)
    reader.close()
    status = engine.settled()
    assert disk_bytes(engine.cache) <= status["cache"]["charged_bytes"] <= limit
    assert status["fills"]["failed"] == 0


def test_a_local_source_is_handed_out_as_it_is(start: Start, tmp_path: Path) -> None:
    """An uncompressed shard on a local disk is neither copied nor charged."""
    data = write_dataset(tmp_path / "data")
    engine = start(4 * MIB)
    reader = Reader(engine.client(), str(data.folder), data)
    opened = reader.client.file(reader.dataset, 1)
    assert opened.direct
    assert opened.size == len(data.raw[1])
    some_reads(reader, 20)
    assert engine.status()["cache"]["resident_bytes"] == 0
    reader.close()


@pytest.mark.parametrize("form", ["raw", "seekable"])
def test_one_small_read_fetches_little(start: Start, rclone: StorageServer, tmp_path: Path, form: str) -> None:
    """4 KiB in the middle of a 16 MiB shard fetch less than 2 MiB, whichever way it can be ranged."""
    data = write_dataset(tmp_path / "data", 1, 16 * MIB, form)
    rclone.put_tree(f"lazy-{form}", data.folder)
    engine = start(64 * MIB, env=rclone.variables)
    reader = Reader(
        engine.client(), rclone.url(f"lazy-{form}"), data, options=RemoteOptions(endpoint_url=rclone.endpoint)
    )
    before = engine.status()["remote"]["bytes"]
    reader.check(0, 8 * MIB + 777, 4 * KIB, handle=1)
    assert engine.quiet()["remote"]["bytes"] - before < MIB
    reader.close()


def test_opening_and_attaching_fetches_no_shard_byte(
    start: Start, rclone: StorageServer, proxy: FaultProxy, tmp_path: Path
) -> None:
    """What tables and index tell costs the index alone."""
    data = write_dataset(tmp_path / "data", 3)
    rclone.put_tree("quiet", data.folder)
    engine = start(64 * MIB, env=rclone.variables_for(proxy.endpoint))
    reader = Reader(engine.client(), rclone.url("quiet"), data, options=RemoteOptions(endpoint_url=proxy.endpoint))
    for file in range(3):
        reader.fd(file)
        assert reader.client.state(reader.dataset, file)["state"] == "absent"
    assert proxy.seen("index.json")
    assert not proxy.seen("shard.")
    reader.close()


def read_all_at_once(readers: list[Reader]) -> None:
    """Each reader reads every file from its start to its end, all of them at the same time."""
    failures: list[BaseException] = []

    def read_all(reader: Reader) -> None:
        try:
            for file, raw in enumerate(reader.data.raw):
                for offset in range(0, len(raw), 128 * KIB):
                    reader.check(file, offset, 128 * KIB, handle=file + 1)
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=read_all, args=(reader,)) for reader in readers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize("form", ["raw", "zstd"])
def test_many_readers_at_once_fetch_each_byte_once(
    start: Start, rclone: StorageServer, proxy: FaultProxy, tmp_path: Path, form: str
) -> None:
    """Eight clients read the same cold dataset to its end; the server sends each object's bytes once."""
    data = write_dataset(tmp_path / "data", 4, 3 * MIB, form)
    rclone.put_tree(f"once-{form}", data.folder)
    engine = start(64 * MIB, env=rclone.variables_for(proxy.endpoint))
    options = RemoteOptions(endpoint_url=proxy.endpoint)
    readers = [Reader(engine.client(), rclone.url(f"once-{form}"), data, options=options) for _ in range(8)]
    read_all_at_once(readers)
    sent = proxy.bytes_by_key()
    probes = 64 * KIB if form == "zstd" else 0
    for name in data.stored:
        size = (data.folder / name).stat().st_size
        assert size <= sent[f"once-{form}/{name}"] <= size + probes
    for reader in readers:
        reader.close()


def test_in_half_the_room_the_log_explains_every_byte_fetched_again(
    start: Start, rclone: StorageServer, proxy: FaultProxy, tmp_path: Path
) -> None:
    """Eight clients read a dataset of twice the limit: bytes are sent again only as `refetch` lines say."""
    data = write_dataset(tmp_path / "data", 8, 2 * MIB)
    rclone.put_tree("half", data.folder)
    engine = start(8 * MIB, env=rclone.variables_for(proxy.endpoint))
    options = RemoteOptions(endpoint_url=proxy.endpoint)
    readers = [Reader(engine.client(), rclone.url("half"), data, options=options) for _ in range(8)]
    read_all_at_once(readers)
    for reader in readers:
        reader.close()
    evicted = engine.settled()["evictions"]["bytes"]
    told = re.findall(r" evicted dataset=\d+ bytes=(\d+) ranges=(\S+)", engine.log.read_text())
    assert sum(int(size) for size, _ in told) == evicted
    runs = [re.findall(r"\d+:(\d+)-(\d+)", ranges) for _, ranges in told]
    assert sum(int(last) - int(first) for each in runs for first, last in each) == evicted
    again = [0] * 8
    for ranges in re.findall(r" refetch dataset=\d+ bytes=\d+ ranges=(\S+)", engine.log.read_text()):
        for file, first, last in re.findall(r"(\d+):(\d+)-(\d+)", ranges):
            again[int(file)] += int(last) - int(first)
    sent = proxy.bytes_by_key()
    for file, name in enumerate(data.stored):
        assert 2 * MIB <= sent[f"half/{name}"] <= 2 * MIB + again[file]


def test_a_sequential_reader_asks_seldom(start: Start, rclone: StorageServer, tmp_path: Path) -> None:
    """Widening: most of a cold shard is there before the reader comes to it, and nothing is fetched twice."""
    data = write_dataset(tmp_path / "data", 3, 8 * MIB)
    rclone.put_tree("wide", data.folder)
    engine = start(64 * MIB, env=rclone.variables)
    reader = Reader(engine.client(), rclone.url("wide"), data, options=RemoteOptions(endpoint_url=rclone.endpoint))
    asked = 0
    for file in range(3):
        for offset in range(0, 8 * MIB, 64 * KIB):
            reader.check(file, offset, 64 * KIB, handle=file + 1)
            if reader.asked > asked:  # what it finds is what was planned for it, not what came in time
                asked = reader.asked
                engine.quiet()
    assert reader.asked < 30
    assert 24 * MIB <= engine.quiet()["remote"]["bytes"] <= 24 * MIB + 64 * KIB
    reader.close()


def test_a_read_whose_client_leaves_goes_on(
    start: Start, rclone: StorageServer, proxy: FaultProxy, tmp_path: Path
) -> None:
    """The wait ends with its client; the fill does not, and the next reader finds it done."""
    from tests.servers import Fault

    data = write_dataset(tmp_path / "data", 1, MIB)
    rclone.put_tree("leaves", data.folder)
    engine = start(64 * MIB, env=rclone.variables_for(proxy.endpoint))
    options = RemoteOptions(endpoint_url=proxy.endpoint)
    first = Reader(engine.client(), rclone.url("leaves"), data, options=options)
    second = Reader(engine.client(), rclone.url("leaves"), data, options=options)
    proxy.add(Fault("hang", match="shard", times=1))
    ended: list[str] = []

    def wait() -> None:
        try:
            first.ask(0, 0, 4096)
        except EngineUnavailableError as error:
            ended.append(str(error))

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    while not proxy.seen("shard"):
        assert thread.is_alive()
    first.client.close()
    thread.join()
    assert ended
    proxy.clear()
    second.check(0, 0, MIB)
    second.close()


def test_two_clients_share_a_source_and_another_identity_is_refused(start: Start, tmp_path: Path) -> None:
    """The refusal names both sides and tells no secret."""
    data = write_dataset(tmp_path / "data", 1, MIB, "zstd")
    engine = start(16 * MIB)
    first = Reader(engine.client(), str(data.folder), data)
    second = Reader(engine.client(), str(data.folder), data)
    assert len(engine.status()["datasets"]) == 1
    identity = RemoteOptions().identity(str(data.folder)) | {"profile": "other"}
    with engine.client() as third, pytest.raises(EngineRefusedError, match=r'not as \{"profile": "other"\}'):
        third.open(str(data.folder), identity)
    first.close()
    second.close()


def test_a_limit_below_index_and_tables_is_refused_with_the_figure(start: Start, tmp_path: Path) -> None:
    """What is asked for is told, and enough."""
    data = write_dataset(tmp_path / "data", 3, MIB, "zstd")
    engine = start(2 * MIB)
    identity = RemoteOptions().identity(str(data.folder))
    with engine.client() as client, pytest.raises(CacheLimitError, match="the least is") as refused:
        client.open(str(data.folder), identity)
    least = int(str(refused.value).rsplit(" ", 1)[1])
    roomy = start(least, cache="other")
    reader = Reader(roomy.client(), str(data.folder), data)
    some_reads(reader, 10)
    reader.close()
    roomy.settled()
    assert disk_bytes(roomy.cache) <= least


def test_a_missing_source_is_told_as_such_and_leaves_nothing(start: Start, tmp_path: Path) -> None:
    """The error names the URL; no folder stays behind."""
    engine = start(16 * MIB)
    missing = str(tmp_path / "nothing")
    with engine.client() as client, pytest.raises(SourceMissingError, match="nothing"):
        client.open(missing, RemoteOptions().identity(missing))
    assert sorted(path.name for path in engine.cache.iterdir()) == ["CACHEDIR.TAG", "VERSION"]


def test_what_is_held_stays_when_the_form_of_its_shard_becomes_known(
    start: Start, rclone: StorageServer, tmp_path: Path
) -> None:
    """A dataset's first want is held before anybody knows that its shards go as a whole; it is held afterwards too."""
    data = write_dataset(tmp_path / "data", 4, 2 * MIB, "zstd")
    rclone.put_tree("held", data.folder)
    engine = start(5 * MIB, env=rclone.variables)
    options = RemoteOptions(endpoint_url=rclone.endpoint)
    holder, other = (Reader(engine.client(), rclone.url("held"), data, options=options) for _ in range(2))
    at = 2 * MIB - 5000
    fd = holder.fd(0)
    with holder.client.held(holder.dataset, [(0, at, 5000)]) as wanted:
        assert not wanted.direct
        for file in (1, 2, 3, 1, 2, 3):
            other.check(file, 0, 2 * MIB)
        assert engine.status()["evictions"]["count"] > 0
        assert os.pread(fd, 5000, at) == data.raw[0][at:]
    holder.close()
    other.close()


def test_what_is_held_stays_when_the_level_rises(start: Start, rclone: StorageServer, tmp_path: Path) -> None:
    """What another client holds is copied to the end before it goes; then it comes again, with its hash checked."""
    data = write_dataset(tmp_path / "data", 1, MIB)
    rclone.put_tree("rises", data.folder)
    engine = start(16 * MIB, env=rclone.variables)
    options = RemoteOptions(endpoint_url=rclone.endpoint)
    first = Reader(engine.client(), rclone.url("rises"), data, options=options)
    fd = first.fd(0)
    with first.client.held(first.dataset, [(0, MIB - 5000, 5000)]):
        second = Reader(engine.client(), rclone.url("rises"), data, options=options, validate="shard")
        with pytest.raises(ReadTimeoutError):
            second.check(0, MIB - 5000, 5000, timeout=0.3)
        assert os.pread(fd, 5000, MIB - 5000) == data.raw[0][MIB - 5000 :]
    second.check(0, MIB - 5000, 5000)
    assert second.client.state(second.dataset, 0)["level"] == "shard"
    first.close()
    second.close()


def test_shard_level_for_one_client_is_shard_level_for_the_dataset(
    start: Start, rclone: StorageServer, tmp_path: Path
) -> None:
    """With `validate`, what came at transport level goes, and every byte comes again with its hash checked."""
    data = write_dataset(tmp_path / "data", 2, MIB)
    rclone.put_tree("validate", data.folder)
    engine = start(16 * MIB, env=rclone.variables)
    options = RemoteOptions(endpoint_url=rclone.endpoint)
    first = Reader(engine.client(), rclone.url("validate"), data, options=options)
    first.check(0, 5000, 5000)
    engine.quiet()
    assert first.client.state(first.dataset, 0)["level"] == "transport"
    second = Reader(engine.client(), rclone.url("validate"), data, options=options, validate="shard")
    assert not second.residency.is_resident(0, 5000, 5000)
    second.check(0, 5000, 5000)
    assert second.client.state(second.dataset, 0)["level"] == "shard"
    first.check(0, 100_000, 5000)
    first.close()
    second.close()


def test_a_dataset_is_shown_below_whatever_source_was_asked_for(start: Start, tmp_path: Path) -> None:
    """Whoever opened it first: by itself, or with all that lies beside it."""
    data = write_dataset(tmp_path / "all" / "train", 1, MIB, "zstd")
    engine = start(16 * MIB)
    identity = RemoteOptions().identity("")
    with engine.client() as client:
        alone = client.open(str(data.folder), identity)
        whole = client.open(str(tmp_path / "all"), identity, list=True)
        assert [each.prefix for each in alone.datasets] == [""]
        assert [each.prefix for each in whole.datasets if each.kind == "mds"] == ["train"]
