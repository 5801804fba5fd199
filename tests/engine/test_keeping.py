"""Pins and evictions on request, and what the cache shows of itself."""

from __future__ import annotations

import json
import mmap
import os
from typing import TYPE_CHECKING, Any

import pytest

from mdsfs.engine.store.state import file_state, map_records
from streaming.engine.address import socket_path
from streaming.engine.client import EngineClient
from streaming.errors import CacheLimitError, EngineRefusedError, ProtocolError, SourceMissingError
from streaming.mds.tables import load_tables

from .conftest import MIB, Data, Engine, Reader, disk_bytes, write_dataset

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Start = Callable[..., Engine]

LIMIT = 16 * MIB


def folders(client: EngineClient) -> list[dict[str, Any]]:
    """What `files` tells."""
    _, (fd,) = client.ask("files", fds=(1, 1))
    found: list[dict[str, Any]] = json.loads(os.pread(fd, os.fstat(fd).st_size, 0))
    os.close(fd)
    return found


def only_folder(client: EngineClient) -> str:
    """The name of the only dataset folder."""
    (found,) = folders(client)
    return str(found["folder"])


def read_all(reader: Reader) -> None:
    """Every byte of every shard, compared."""
    for file, raw in enumerate(reader.data.raw):
        reader.check(file, 0, len(raw))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Twelve shards of 2 MiB, whose reading does not fit into the cache."""
    return write_dataset(tmp_path_factory.mktemp("keeping") / "data", 12, 2 * MIB, "seekable")


def test_pinned_files_stay(start: Start, data: Data) -> None:
    """However much is read past them, pinned shards stay; once unpinned they go with the others."""
    with start(LIMIT) as engine, engine.client() as client:
        reader = Reader(client, str(data.folder), data)
        folder = only_folder(client)
        told, _ = client.ask("pin", folder=folder, files=[[0, 2]])
        assert 4 * MIB < told["pinned_bytes"] < 4.2 * MIB
        for _ in range(2):
            read_all(reader)
        engine.quiet()
        assert [client.state(reader.dataset, file)["state"] for file in (0, 1)] == ["complete"] * 2
        told, _ = client.ask("unpin", folder=folder, files=[[0, 12]])
        assert (told["unpinned"], told["pinned_bytes"]) == (2, 0)
        for _ in range(2):
            for file in range(2, 12):
                reader.check(file, 0, 2 * MIB)
        assert [client.state(reader.dataset, file)["state"] for file in (0, 1)] == ["absent"] * 2
        reader.close()
    assert disk_bytes(engine.cache) <= LIMIT


def test_pins_survive_the_engine(start: Start, data: Data) -> None:
    """Killed or stopped: the next engine keeps what was pinned, also before anybody opens the dataset."""
    with start(LIMIT) as engine, engine.client() as client:
        reader = Reader(client, str(data.folder), data)
        reader.check(3, 0, 2 * MIB)
        client.ask("pin", folder=only_folder(client), files=[[3, 1], [7, 1]])
        reader.close()
        engine.settled()
        engine.kill()
    with start(LIMIT) as engine, engine.client() as client:
        (shown,) = folders(client)
        assert (shown["pinned_files"], shown["users"]) == (2, 0)
        reader = Reader(client, str(data.folder), data)
        for _ in range(2):
            for file in (0, 1, 2, 4, 5, 6, 8, 9, 10, 11):
                reader.check(file, 0, 2 * MIB)
        assert client.state(reader.dataset, 3)["state"] == "complete"
        reader.close()
    with start(LIMIT) as engine, engine.client() as client:
        assert folders(client)[0]["pinned_files"] == 2


def test_a_dropped_file_stays_pinned(start: Start, data: Data) -> None:
    """What an earlier engine left of a pinned file and is not as it was goes, the pin does not."""
    with start(LIMIT) as engine, engine.client() as client:
        reader = Reader(client, str(data.folder), data)
        reader.check(3, 0, 2 * MIB)
        folder = only_folder(client)
        client.ask("pin", folder=folder, files=[[3, 1]])
        reader.close()
    path = engine.cache / folder / "files" / "3"
    with path.open("r+b") as file:
        file.write(b"other")
    with start(LIMIT) as engine, engine.client() as client:
        reader = Reader(client, str(data.folder), data)
        reader.check(3, 0, 2 * MIB)
        assert folders(client)[0]["pinned_files"] == 1
        reader.close()


def test_pins_beyond_the_limit_are_refused(start: Start, data: Data) -> None:
    """Nothing of a request is done that would not fit; the message gives the figures."""
    with start(LIMIT) as engine, engine.client() as client:
        reader = Reader(client, str(data.folder), data)
        folder = only_folder(client)
        client.ask("pin", folder=folder, files=[[0, 2]])
        with pytest.raises(CacheLimitError, match=r"these 10 files takes 20\.\d MiB beside 4\.\d\d MiB .* leaves 1\d"):
            client.ask("pin", folder=folder, files=[[2, 10]])
        assert folders(client)[0]["pinned_files"] == 2
        reader.close()


def test_a_lower_limit_drops_pins(start: Start, data: Data) -> None:
    """An engine that starts with less room keeps its bound, and unpins what can't be kept."""
    with start(LIMIT) as engine, engine.client() as client:
        reader = Reader(client, str(data.folder), data)
        client.ask("pin", folder=only_folder(client), files=[[0, 5]])
        for file in range(5):
            reader.check(file, 0, 2 * MIB)
        reader.close()
    with start(6 * MIB) as engine:
        assert disk_bytes(engine.cache) <= 6 * MIB
        with engine.client() as client:
            assert folders(client)[0]["pinned_files"] == 0
        assert "unpinned the 5 pinned files" in engine.log.read_text()


def test_a_folder_with_pins_is_not_removed(start: Start, data: Data, tmp_path: Path) -> None:
    """Room for others is not made by forgetting what somebody wants to keep."""
    other = write_dataset(tmp_path / "other", 12, 2 * MIB, "seekable", seed=1)
    with start(LIMIT) as engine, engine.client() as client:
        reader = Reader(client, str(data.folder), data)
        client.ask("pin", folder=only_folder(client), files=[[0, 1]])
        reader.close()
        engine.settled()
        with engine.client() as second:
            reader = Reader(second, str(other.folder), other)
            read_all(reader)
            assert {each["url"] for each in folders(second)} == {str(data.folder), str(other.folder)}
            reader.close()


def test_eviction_on_request(start: Start, data: Data) -> None:
    """What nobody needs goes at once; what is pinned or held stays, and the answer says why."""
    with start(LIMIT) as engine, engine.client() as client:
        reader = Reader(client, str(data.folder), data)
        for file in range(4):
            reader.check(file, 0, 2 * MIB)
        engine.quiet()
        folder = only_folder(client)
        client.ask("pin", folder=folder, files=[[1, 1]])
        with client.held(reader.dataset, [(2, MIB, 4096)]):
            told, _ = client.ask("evict", folder=folder, files=[[0, 4]])
            assert told["kept"] == [[1, "pinned"], [2, "held by a reader"]]
            assert told["evicted_bytes"] == 4 * MIB
        states = [client.state(reader.dataset, file)["state"] for file in range(4)]
        assert states == ["absent", "complete", "complete", "absent"]
        reader.check(0, 0, 2 * MIB)
        reader.close()


def test_eviction_forgets_a_folder_that_nobody_needs(start: Start, data: Data) -> None:
    """With `forget` nothing is left of the dataset, unless somebody has it open."""
    with start(LIMIT) as engine:
        with engine.client() as client:
            reader = Reader(client, str(data.folder), data)
            reader.check(0, 0, 4096)
            folder = only_folder(client)
            assert client.ask("evict", folder=folder, files=[[0, 12]], forget=True)[0]["forgotten"] is False
            reader.close()
        engine.settled()
        with engine.client() as client:
            assert client.ask("evict", folder=folder, files=[[0, 12]], forget=True)[0]["forgotten"] is True
            assert folders(client) == []
            with pytest.raises(SourceMissingError):
                client.ask("evict", folder=folder, files=[])
        assert not (engine.cache / folder).exists()


def test_tables_are_handed_out(start: Start, data: Data) -> None:
    """What is in a folder can be read from its own files: names, blocks, levels, pins."""
    with start(LIMIT) as engine, engine.client() as client:
        reader = Reader(client, str(data.folder), data)
        reader.check(5, 0, 2 * MIB)
        engine.quiet()
        folder = only_folder(client)
        client.ask("pin", folder=folder, files=[[6, 1]])
        told, fds = client.ask("files", folder=folder, fds=(3, 3))
        assert told["failed"] == []
        tables = load_tables(memoryview(mmap.mmap(fds[0], 0, prot=mmap.PROT_READ)))
        assert list(tables.names()) == [f"shard.{number:05d}.mds" for number in range(12)]
        states = [file_state(record) for record in map_records(fds[2], 12)]
        assert [number for number, state in enumerate(states) if state.complete] == [5]
        assert [number for number, state in enumerate(states) if state.kept] == [6]
        _, (fd,) = client.ask("files", folder=folder, file=5, fds=(1, 1))
        assert os.pread(fd, 2 * MIB, 0) == data.raw[5]
        for each in (*fds, fd):
            os.close(each)
        reader.close()


HOSTILE = [
    ({"files": [[0, 13]]}, "runs below 12"),
    ({"files": [[0]]}, "lists of 2 numbers"),
    ({"files": [[-1, 1]]}, "lists of 2 numbers"),
    ({"files": "all"}, "expected a list"),
    ({"files": [[1 << 61, 1 << 61]]}, "runs below 12"),
    ({"files": [], "folder": 5}, "folder: expected a string"),
    ({"files": [], "forget": 1}, "forget: expected true or false"),
]


def test_hostile_requests(start: Start, data: Data) -> None:
    """Wrong fields are protocol errors, and the engine goes on."""
    with start(LIMIT) as engine, engine.client() as client:
        reader = Reader(client, str(data.folder), data)
        folder = only_folder(client)
        for fields, complaint in HOSTILE:
            with pytest.raises(ProtocolError, match=complaint):
                client.ask("evict", **({"folder": folder} | fields))
        reader.check(0, 0, 4096)
        reader.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
def test_only_the_owner_may_change_what_is_kept(start: Start, data: Data) -> None:
    """Others who may read look on."""
    with start(LIMIT, "--allow-other") as engine, engine.client() as client:
        reader = Reader(client, str(data.folder), data)
        child = os.fork()
        if child == 0:
            try:
                os._exit(_refusals(engine))
            finally:
                os._exit(99)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
        reader.close()


def _refusals(engine: Engine) -> int:
    """As somebody else: how many of the three requests are refused."""
    path = socket_path(engine.cache)
    os.setuid(65534)
    refused = 0
    with EngineClient.at_socket(path) as client:
        folder = only_folder(client)
        for op in ("pin", "unpin", "evict"):
            try:
                client.ask(op, folder=folder, files=[[0, 1]])
            except EngineRefusedError:
                refused += 1
    return refused
