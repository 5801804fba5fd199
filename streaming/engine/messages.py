"""Packets on the engine's socket: one JSON object and up to 16 file descriptors each, with the limits of PROTOCOL.md.

Owns the wire form and its bounds. Knows sockets only as something with `sendmsg` and `recvmsg`; whether a call may
block is the socket's own setting (`BlockingIOError` passes through), so that a trio server and a synchronous client
share these functions.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
import threading
from typing import TYPE_CHECKING, Any

from streaming.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MAX_FDS", "MAX_PACKET", "PROTOCOL", "close_fds", "decode", "encode", "receive", "send"]

PROTOCOL = 1
# A batch of 1,000 ranges needs about 25 KB; one packet must fit the default socket buffer (208 KiB) at least three
# times.
MAX_PACKET = 64 * 1024
# Memfds of one `want` beside each other; the kernel's own limit is 253.
MAX_FDS = 16
# JSON nests by recursion: nobody needs more than ranges in a list in an object.
_MAX_DEPTH = 16

# As plain numbers: the constants of `socket` are enums, of which every `|` takes longer than the call they are for.
_NO_SIGNAL, _CLOSE_ON_EXEC = int(socket.MSG_NOSIGNAL), int(socket.MSG_CMSG_CLOEXEC)
_CUT_OFF = int(socket.MSG_TRUNC) | int(socket.MSG_CTRUNC)

_FD_SIZE = array.array("i").itemsize
_ANCILLARY = socket.CMSG_SPACE(MAX_FDS * _FD_SIZE)

Message = dict[str, Any]


class _Received(threading.local):
    """Each thread's own memory for the packet that it is receiving."""

    buffer: bytearray


_received = _Received()


def encode(message: Message) -> bytes:
    """The packet of a message; raises ProtocolError when it would be too large."""
    data = json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode()
    if len(data) > MAX_PACKET:
        raise ProtocolError(
            f"a message of {len(data)} bytes is larger than a packet may be ({MAX_PACKET}): ask for less at once"
        )
    return data


def decode(packet: bytes) -> Message:
    """The message of a packet; anything but one JSON object of modest depth is a ProtocolError."""
    if len(packet) > MAX_PACKET:
        raise ProtocolError(f"a packet of {len(packet)} bytes is larger than {MAX_PACKET}")
    if packet.count(b"[") + packet.count(b"{") > _MAX_DEPTH and _depth(packet) > _MAX_DEPTH:
        raise ProtocolError("a packet nests too deeply")
    try:
        message = json.loads(packet)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("a packet is not JSON") from error
    if not isinstance(message, dict):
        raise ProtocolError("a packet is not a JSON object")
    return message


def _depth(packet: bytes) -> int:
    # Brackets inside strings count too: no message of ours carries deep ones, and the bound is what matters.
    deepest = depth = 0
    for byte in packet:
        if byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"]}":
            depth -= 1
    return deepest


def send(sock: socket.socket, packet: bytes, fds: Sequence[int] = (), flags: int = 0, *, most: int = MAX_FDS) -> None:
    """Send one packet with its descriptors, `most` of them at most, which stay open here."""
    if len(fds) > most:
        raise ProtocolError(f"{len(fds)} descriptors in one packet, expected at most {most}")
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([packet], ancillary, int(flags) | _NO_SIGNAL)


def receive(sock: socket.socket, flags: int = 0, *, most: int = MAX_FDS) -> tuple[bytes, list[int]]:
    """One packet and its descriptors (CLOEXEC, now the caller's); `b""` when the other side has closed.

    A packet with more than `most` descriptors is an error.
    """
    ancillary_size = _ANCILLARY if most == MAX_FDS else socket.CMSG_SPACE(most * _FD_SIZE)
    try:
        buffer: bytearray = _received.buffer
    except AttributeError:
        buffer = _received.buffer = bytearray(MAX_PACKET)
    # into memory that is there: to allocate the largest packet anew would cost more than to receive a usual one
    size, ancillary, message_flags, _ = sock.recvmsg_into([buffer], ancillary_size, int(flags) | _CLOSE_ON_EXEC)
    packet = bytes(memoryview(buffer)[:size])
    fds: list[int] = []
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(data[: len(data) - len(data) % _FD_SIZE])
            fds.extend(numbers)
    if message_flags & _CUT_OFF:
        close_fds(fds)
        raise ProtocolError("a packet is larger than the protocol allows")
    return packet, fds


def close_fds(fds: Sequence[int]) -> None:
    """Close descriptors that nobody wants."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
