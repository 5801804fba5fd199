"""Packets between engine and fetcher: the messages of `streaming.engine.messages`, of any size.

What does not fit a packet (a job of many frames) travels in a memfd beside it, as the packet's last descriptor.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from streaming.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MOST_FDS", "memfd_of", "pack", "read_all", "unpack"]

# Sixteen of these fit the socket's buffer (208 KiB), so that a fetcher's few jobs never wait for it.
LARGEST_INLINE = 12 << 10
# Of a group each file has a descriptor; one more for what does not fit the packet. The kernel's own limit is 253.
MOST_FDS = 65
# A job of 2 million frames; both sides are ours, this only keeps a mistake from eating the memory.
LARGEST = 256 << 20


def pack(message: dict[str, Any]) -> tuple[bytes, list[int]]:
    """The packet of a message, and the descriptor that must travel last with it, if any (the caller closes it)."""
    data = json.dumps(message, separators=(",", ":")).encode()
    if len(data) <= LARGEST_INLINE:
        return data, []
    return b'{"elsewhere":true}', [memfd_of("message", data)]


def unpack(packet: bytes, fds: Sequence[int]) -> tuple[dict[str, Any], list[int]]:
    """The message of a packet, and the descriptors that are its own."""
    # not `messages.decode`: both sides are ours, and to look how deep a group of jobs nests costs more than to read it
    message = json.loads(packet)
    if "elsewhere" not in message:
        return message, list(fds)
    if not fds:
        raise ProtocolError("a packet without the descriptor that it speaks of")
    try:
        found = json.loads(read_all(fds[-1]))
    finally:
        os.close(fds[-1])
    if not isinstance(found, dict):
        raise ProtocolError("a packet is not a JSON object")
    return found, list(fds[:-1])


def memfd_of(name: str, data: bytes | memoryview) -> int:
    """A memfd that holds these bytes."""
    fd = os.memfd_create(f"mdsfs {name}", os.MFD_CLOEXEC)
    try:
        at = 0
        while at < len(data):
            at += os.pwrite(fd, data[at:], at)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_all(fd: int) -> bytes:
    """All bytes of a memfd."""
    size = os.fstat(fd).st_size
    if size > LARGEST:
        raise ProtocolError(f"a message of {size} bytes is larger than {LARGEST}")
    found = bytearray()
    while len(found) < size:
        piece = os.pread(fd, size - len(found), len(found))
        if not piece:
            raise ProtocolError("a message is cut off")
        found += piece
    return bytes(found)
