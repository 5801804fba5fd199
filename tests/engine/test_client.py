"""The synchronous client against real engines: starting them, sharing them, forking, giving up, being refused."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from streaming.engine import messages
from streaming.engine.address import socket_path
from streaming.engine.client import EngineClient
from streaming.engine.spawn import EngineOptions
from streaming.errors import (
    CacheDirectoryError,
    EngineRefusedError,
    EngineUnavailableError,
    ProtocolError,
    ReadTimeoutError,
)
from tests.servers import Fault

from .conftest import MIB, ROOT, Engine, Reader, write_dataset

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.servers import FaultProxy, StorageServer

    Start = Callable[..., Engine]

CONNECT = """
import sys
from streaming.engine.client import EngineClient
from streaming.engine.spawn import EngineOptions
from pathlib import Path
cache = Path(sys.argv[1])
with EngineClient.connect(cache, EngineOptions(cache, 8 << 20, idle_exit=60)) as client:
    print(client.engine["pid"], flush=True)
    sys.stdin.read()
"""


def test_many_clients_at_once_start_one_engine(tmp_path: Path) -> None:
    """Eight processes that find no engine end up at the same one; it leaves when nobody needs it."""
    command = [sys.executable, "-c", CONNECT, str(tmp_path / "cache")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    starters = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(8)]  # type: ignore[call-overload]
    pids = {int(starter.stdout.readline()) for starter in starters}
    assert len(pids) == 1
    with EngineClient.connect(tmp_path / "cache") as client:
        assert client.engine["pid"] in pids
        for starter in starters:
            starter.communicate(b"", timeout=60)
        client.stop()


def test_an_idle_engine_ends_by_itself(tmp_path: Path) -> None:
    """Started with `--idle-exit`, nobody connected: it ends with 0 and its socket is gone."""
    engine = Engine(tmp_path / "cache", 4 * MIB, "--idle-exit", "0.3")
    assert engine.said == b"ok\n"
    assert engine.process.wait(60) == 0
    assert not socket_path(engine.cache).exists()


def test_without_an_engine_and_without_leave_to_start_one(tmp_path: Path) -> None:
    """The error says what to do."""
    (tmp_path / "cache").mkdir()
    with pytest.raises(EngineUnavailableError, match="mdsfs engine --cache-dir"):
        EngineClient.connect(tmp_path / "cache")


def test_what_keeps_an_engine_from_starting_reaches_the_starter(tmp_path: Path) -> None:
    """A foreign directory is refused in one line, through the pipe."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "thesis.tex").write_text("precious")
    with pytest.raises(CacheDirectoryError, match="not empty"):
        EngineClient.connect(tmp_path / "cache", EngineOptions(tmp_path / "cache", 8 * MIB))


def test_another_limit_is_refused_with_both_figures(start: Start) -> None:
    """An engine with other options than the client counts on says so."""
    engine = start(8 * MIB)
    with pytest.raises(EngineRefusedError, match=f"--cache-limit {8 * MIB}, not with --cache-limit {9 * MIB}"):
        EngineClient.connect(engine.cache, EngineOptions(engine.cache, 9 * MIB))


def test_a_second_engine_names_the_first(start: Start, tmp_path: Path) -> None:
    """The loser of the directory ends with an error that tells the winner's pid, and leaves its socket alone."""
    engine = start(8 * MIB)
    second = Engine(tmp_path / "cache", 8 * MIB)
    assert f"pid {engine.process.pid}" in json.loads(second.said)["message"]
    assert second.process.wait(60) == 7
    engine.client().close()


def test_sigterm_ends_it_cleanly(start: Start, tmp_path: Path) -> None:
    """Status 0, no socket, and the next engine goes on with what was there."""
    data = write_dataset(tmp_path / "data", 1, MIB, "zstd")
    engine = start(8 * MIB)
    reader = Reader(engine.client(), str(data.folder), data)
    reader.check(0, 0, MIB)
    reader.close()
    engine.settled()
    assert engine.stop() == 0
    assert not socket_path(engine.cache).exists()
    again = start(8 * MIB)
    reader = Reader(again.client(), str(data.folder), data)
    reader.check(0, 0, MIB)
    assert reader.asked == 0
    reader.close()


def test_a_forked_child_leaves_the_connection_alone(start: Start, tmp_path: Path) -> None:
    """In the child the client is closed; the parent's goes on."""
    data = write_dataset(tmp_path / "data", 1, MIB, "zstd")
    engine = start(8 * MIB)
    reader = Reader(engine.client(), str(data.folder), data)
    child = os.fork()
    if not child:
        os._exit(0 if reader.client.closed and not reader.client.is_alive() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    reader.check(0, 0, MIB)
    assert reader.client.is_alive()
    reader.close()


def test_threads_share_a_connection(start: Start, tmp_path: Path) -> None:
    """Each of many threads gets its own answers."""
    data = write_dataset(tmp_path / "data", 4, MIB, "zstd")
    engine = start(16 * MIB)
    reader = Reader(engine.client(), str(data.folder), data)
    for file in range(4):
        reader.fd(file)
    failures: list[BaseException] = []

    def work(file: int) -> None:
        try:
            for offset in range(0, MIB, 32768):
                assert reader.ask(file, offset, 32768) == data.raw[file][offset : offset + 32768]
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work, args=(file,)) for file in (0, 1, 2, 3, 0, 1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    engine.status_when(lambda status: not status["cache"]["held_chunks"])
    reader.close()


def test_a_want_times_out_and_the_fill_goes_on(
    start: Start, rclone: StorageServer, proxy: FaultProxy, tmp_path: Path
) -> None:
    """`timeout` ends the wait with read-timeout; later the bytes are there without another request."""
    from streaming.remote import RemoteOptions

    data = write_dataset(tmp_path / "data", 1, MIB)
    rclone.put_tree("timeout", data.folder)
    engine = start(8 * MIB, env=rclone.variables_for(proxy.endpoint))
    options = RemoteOptions(endpoint_url=proxy.endpoint)
    reader = Reader(engine.client(), rclone.url("timeout"), data, options=options)
    proxy.add(Fault("stall", match="shard", times=1, after=1000))
    with pytest.raises(ReadTimeoutError, match=r"not fetched within 0.5 s: shard.00000.mds"):
        reader.ask(0, 0, 65536, timeout=0.5)
    proxy.clear()
    reader.check(0, 0, 65536)
    reader.close()


def test_what_a_client_held_is_free_when_it_goes(start: Start, tmp_path: Path) -> None:
    """Holds end with the connection, also of a process that was killed."""
    data = write_dataset(tmp_path / "data", 1, MIB, "zstd")
    engine = start(8 * MIB)
    reader = Reader(engine.client(), str(data.folder), data)
    reader.fd(0)
    reader.client.want(reader.dataset, [(0, 0, MIB)])
    assert engine.status()["cache"]["held_chunks"] > 0
    reader.close()
    assert engine.settled()["cache"]["held_chunks"] == 0


# ---- hostile clients -------------------------------------------------------------------------------------------------


def raw_connection(engine: Engine) -> socket.socket:
    """A socket without a client's manners."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(60)
    sock.connect(os.fspath(socket_path(engine.cache)))
    return sock


@pytest.mark.parametrize(
    "packet",
    [
        b"not json",
        b"[1, 2]",
        b"\xff\xfe",
        b'{"id": 0, "op": "hello"}',
        b'{"id": -1, "op": "status"}',
        b'{"id": true, "op": "status"}',
        b'{"op": "status"}',
        b"[" * 60000,
        b'{"id": 1, "op": "status", "x": ' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}",
    ],
)
def test_packets_that_cannot_be_read_end_their_connection_alone(start: Start, packet: bytes) -> None:
    """The engine closes, and serves the next client."""
    engine = start(4 * MIB)
    with contextlib.closing(raw_connection(engine)) as sock:
        sock.send(packet)
        assert sock.recv(65536) == b""
    engine.client().close()


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        ({"op": "status"}, "hello comes first"),
        ({"op": "explode"}, "unknown op"),
        ({"op": ["hello"]}, "unknown op"),
        ({"op": "hello", "protocol": 2, "client": "cli", "pid": 1}, "speaks protocol 1"),
        ({"op": "hello", "protocol": "1", "client": "cli", "pid": 1}, "protocol: expected an integer"),
        ({"op": "hello", "protocol": 1, "client": "virus", "pid": 1}, "client: expected one of"),
        ({"op": "hello", "protocol": 1, "client": "cli", "pid": 1, "extra": 1}, "unknown key 'extra'"),
        ({"op": "hello", "protocol": 1, "client": "cli", "pid": 1, "expect": [1]}, "expect: expected an object"),
    ],
)
def test_wrong_requests_are_answered(start: Start, request_: dict[str, object], complaint: str) -> None:
    """A request that can be read but not served gets an error, and the connection stays."""
    engine = start(4 * MIB)
    with contextlib.closing(raw_connection(engine)) as sock:
        for number in (1, 2):
            sock.send(json.dumps({"id": number, **request_}).encode())
            reply = json.loads(sock.recv(65536))
            assert reply["id"] == number
            assert complaint in reply["error"]["message"]


def test_wrong_fields_of_a_want_are_protocol_errors(start: Start, tmp_path: Path) -> None:
    """Numbers of nothing, negative, huge, of a wrong shape: each is refused, none does anything."""
    data = write_dataset(tmp_path / "data", 1, MIB, "zstd")
    engine = start(8 * MIB)
    reader = Reader(engine.client(), str(data.folder), data)
    good: dict[str, object] = {"op": "want", "dataset": reader.dataset, "ranges": [], "handle": None, "timeout": 1}
    wrong: list[dict[str, object]] = [
        {"dataset": 99},
        {"dataset": -1},
        {"ranges": [[5, 0, 1]]},
        {"ranges": [[0, -1, 1]]},
        {"ranges": [[0, 0, 1 << 63]]},
        {"ranges": [[0, 0]]},
        {"ranges": "all"},
        {"ranges": [[0.0, 0, 1]]},
        {"touch": [[9, 0]]},
        {"timeout": -1},
        {"timeout": float("inf")},
        {"handle": "x"},
    ]
    for change in wrong:
        with pytest.raises(ProtocolError):
            reader.client.exchange.call(good | change)
    for op in ("attach", "file", "state"):
        with pytest.raises(ProtocolError):
            reader.client.exchange.call({"op": op, "dataset": 7, **({} if op == "attach" else {"file": 0})})
    with pytest.raises(ProtocolError):
        reader.client.exchange.call({"op": "file", "dataset": reader.dataset, "file": 1})
    reader.client.done(12345)
    reader.check(0, 0, MIB)
    reader.close()


def test_a_client_that_never_reads_is_dropped_and_harms_nobody(start: Start) -> None:
    """Its answers pile up to a bound; then it is disconnected, and the others never noticed."""
    engine = start(4 * MIB)
    with contextlib.closing(raw_connection(engine)) as sock, engine.client() as other:
        sock.send(json.dumps({"id": 1, "op": "hello", "protocol": 1, "client": "cli", "pid": 1}).encode())
        with pytest.raises(OSError, match=r"Broken pipe|reset"):  # noqa: PT012 - how many it takes is the engine's choice
            for number in range(2, 100_000):
                sock.send(json.dumps({"id": number, "op": "nonsense" * 100}).encode())
        assert json.loads(other.status())["engine"]["pid"] == engine.process.pid


def test_descriptors_sent_to_the_engine_are_closed(start: Start) -> None:
    """A client cannot fill the engine's descriptor table."""
    engine = start(4 * MIB)
    fds = len(os.listdir(f"/proc/{engine.process.pid}/fd"))
    with contextlib.closing(raw_connection(engine)) as sock, open("/dev/null", "rb") as null:
        for number in range(1, 50):
            messages.send(sock, b'{"id": %d, "op": "status"}' % number, [null.fileno()] * 16)
            sock.recv(65536)
        # whoever has answered this one is done with those before
        messages.send(sock, b'{"id": 50, "op": "status"}')
        sock.recv(65536)
        assert len(os.listdir(f"/proc/{engine.process.pid}/fd")) < fds + 16
