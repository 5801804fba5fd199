"""Packets: what goes in comes out, and nothing beyond the limits does."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.engine import messages
from streaming.engine.address import check_runtime_directory, socket_path
from streaming.errors import EngineUnavailableError, ProtocolError

if TYPE_CHECKING:
    from pathlib import Path

VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3))


@given(st.dictionaries(st.text(max_size=8), VALUES, max_size=5))
def test_messages_survive_the_wire(message: dict[str, object]) -> None:
    """Decoding undoes encoding."""
    assert messages.decode(messages.encode(message)) == message


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_protocol_error(packet: bytes) -> None:
    """Nothing else ever comes out of a stranger's packet."""
    with contextlib.suppress(ProtocolError):
        assert isinstance(messages.decode(packet), dict)


def test_what_is_too_large_or_too_deep_is_refused() -> None:
    """Both on the way out and on the way in."""
    with pytest.raises(ProtocolError, match="larger than a packet"):
        messages.encode({"x": "y" * messages.MAX_PACKET})
    with pytest.raises(ProtocolError, match="larger than"):
        messages.decode(b" " * (messages.MAX_PACKET + 1))
    with pytest.raises(ProtocolError, match="deeply"):
        messages.decode(b'{"x":' + b"[" * 50 + b"]" * 50 + b"}")


def test_descriptors_travel_with_their_packet() -> None:
    """Sixteen do; seventeen are refused; the receiver's are CLOEXEC."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, open("/dev/null", "rb") as null:
        messages.send(ours, b"{}", [null.fileno()] * messages.MAX_FDS)
        packet, fds = messages.receive(theirs)
        assert packet == b"{}"
        assert len(fds) == messages.MAX_FDS
        assert not any(os.get_inheritable(fd) for fd in fds)
        messages.close_fds(fds)
        with pytest.raises(ProtocolError, match="17 descriptors"):
            messages.send(ours, b"{}", [null.fileno()] * 17)


def test_the_end_of_a_connection_is_an_empty_packet() -> None:
    """A closed socket is told from a message."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.close()
    with theirs:
        assert messages.receive(theirs) == (b"", [])


def test_every_spelling_of_a_directory_leads_to_one_socket(tmp_path: Path) -> None:
    """The name comes from the directory itself."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "link").symlink_to("cache")
    assert socket_path(tmp_path / "cache") == socket_path(tmp_path / "link")


def test_a_runtime_folder_that_others_may_write_is_refused(tmp_path: Path) -> None:
    """Somebody else could listen there in the engine's name."""
    (tmp_path / "run").chmod(0o777)
    with pytest.raises(EngineUnavailableError, match="nobody else may write"):
        check_runtime_directory(tmp_path / "run")
