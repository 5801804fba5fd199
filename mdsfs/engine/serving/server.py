"""The engine's socket: who may connect, and a nursery for each who does."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import struct
from typing import TYPE_CHECKING

import trio

from streaming.engine.address import prepare_runtime_directory, socket_path
from streaming.errors import EngineUnavailableError

from .connection import Connection
from .session import Peer, Session

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ..engine import Engine

__all__ = ["listening", "serve_clients"]

log = logging.getLogger(__name__)

BACKLOG = 1024
MAX_CLIENTS = 4096
_PEERCRED = struct.Struct("3i")
# Out of descriptors: those who are connected go on, those who wait are taken later.
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
EXHAUSTED_PAUSE = 0.2


@contextlib.contextmanager
def listening(cache_dir: Path, *, allow_other: bool) -> Iterator[socket.socket]:
    """The listening socket of a cache directory that we own; its name goes when the block ends.

    A name that is there already is a dead engine's: whoever owns the directory owns the name.
    """
    prepare_runtime_directory(open_to_others=allow_other)
    path = socket_path(cache_dir)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    with sock:
        # Bound under another name and renamed: the final name is never there without somebody listening.
        temporary = path.with_suffix(f".{os.getpid()}")
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        try:
            sock.bind(os.fspath(temporary))
            temporary.chmod(0o666 if allow_other else 0o600)
            sock.listen(BACKLOG)
            temporary.rename(path)
        except OSError as error:
            raise EngineUnavailableError(f"cannot listen at {path}: {error.strerror}") from error
        inode = path.stat().st_ino
        try:
            yield sock
        finally:
            with contextlib.suppress(OSError):
                if path.stat().st_ino == inode:
                    path.unlink()


async def serve_clients(engine: Engine, listener: socket.socket) -> None:
    """Accept and serve until cancelled."""
    async with trio.open_nursery() as nursery:
        while True:
            await trio.lowlevel.wait_readable(listener)
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                continue
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                log.error("cannot take another client: %s", error.strerror)
                await trio.sleep(EXHAUSTED_PAUSE)
                continue
            peer = Peer(*_PEERCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)))
            if len(engine.sessions) >= MAX_CLIENTS or not (peer.is_master or engine.options.allow_other):
                log.warning("refused a client: pid %d of uid %d", peer.pid, peer.uid)
                sock.close()
                continue
            nursery.start_soon(_serve_one, engine, sock, peer, name=f"client pid {peer.pid}")


async def _serve_one(engine: Engine, sock: socket.socket, peer: Peer) -> None:
    connection = Connection(sock)
    try:
        async with trio.open_nursery() as nursery:
            session = Session(engine, connection, peer, nursery)
            engine.sessions.add(session)
            engine.clients_changed()
            nursery.start_soon(connection.send_forever)
            await session.serve()
            nursery.cancel_scope.cancel()
    finally:
        # In this order: no task of the session is left that could claim anything.
        connection.close()
        session.end()
        engine.sessions.discard(session)
        engine.clients_changed()
