"""Requests are written by strangers: their fields are read here, and what does not fit is a ProtocolError that says so.

Pure. A request's keys are checked against what its op knows, then each field against its type and bounds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streaming.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["OPS", "check_keys", "flag", "mapping", "number", "pairs", "seconds", "text", "triples"]

Request = dict[str, Any]

OPS: Mapping[str, frozenset[str]] = {
    "hello": frozenset({"protocol", "client", "pid", "expect"}),
    "open": frozenset({"url", "identity", "list", "validate", "publish"}),
    "attach": frozenset({"dataset"}),
    "file": frozenset({"dataset", "file"}),
    "want": frozenset({"dataset", "ranges", "samples", "handle", "timeout", "touch"}),
    "done": frozenset({"want"}),
    "ahead": frozenset({"dataset", "ranges"}),
    "hint": frozenset({"epoch", "drop", "at"}),
    "order": frozenset({"job", "epoch", "timeout"}),
    "position": frozenset({"job", "epoch", "at"}),
    "retract": frozenset({"job"}),
    "dismiss": frozenset(),
    "state": frozenset({"dataset", "file"}),
    "files": frozenset({"folder", "file"}),
    "pin": frozenset({"folder", "files"}),
    "unpin": frozenset({"folder", "files"}),
    "evict": frozenset({"folder", "files", "forget"}),
    "register": frozenset({"mountpoint", "source"}),
    "report": frozenset({"reads_at_once", "reads_asked", "reads_waiting", "reads_failed", "bytes_read", "timings"}),
    "status": frozenset({"brief"}),
    "stop": frozenset(),
}
# Nothing in a cache is larger: far from where arithmetic of others would overflow.
LARGEST = 1 << 62
LONGEST_TEXT = 8192
# A day: longer than anybody waits, short enough for any clock.
LONGEST_WAIT = 86400.0


def check_keys(request: Request) -> str:
    """The op of a request whose op and keys are known."""
    op = request.get("op")
    known = OPS.get(op) if isinstance(op, str) else None
    if known is None or not isinstance(op, str):
        raise ProtocolError(f"unknown op {_shown(op)}")
    unknown = request.keys() - known - {"id", "op"}
    if unknown:
        raise ProtocolError(f"{op}: unknown key {_shown(min(unknown))}")
    return op


def number(request: Request, name: str, *, least: int = 0, most: int = LARGEST) -> int:
    """An integer within bounds."""
    value = request.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ProtocolError(f"{name}: expected an integer from {least} to {most}, got {_shown(value)}")
    return value


def text(request: Request, name: str) -> str:
    """A string of bounded length."""
    value = request.get(name)
    if not isinstance(value, str) or len(value) > LONGEST_TEXT or "\0" in value:
        raise ProtocolError(f"{name}: expected a string, got {_shown(value)}")
    return value


def flag(request: Request, name: str) -> bool:
    """A boolean; absent is false."""
    value = request.get(name, False)
    if not isinstance(value, bool):
        raise ProtocolError(f"{name}: expected true or false, got {_shown(value)}")
    return value


def mapping(request: Request, name: str) -> dict[str, Any]:
    """An object of simple values; absent is empty."""
    value = request.get(name) or {}
    if not isinstance(value, dict) or not all(
        isinstance(each, str | int | float | bool | None) for each in value.values()
    ):
        raise ProtocolError(f"{name}: expected an object of simple values, got {_shown(value)}")
    return value


def seconds(request: Request, name: str) -> float:
    """A duration; at most a day."""
    value = request.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < float("inf"):
        raise ProtocolError(f"{name}: expected seconds, got {_shown(value)}")
    return min(float(value), LONGEST_WAIT)


def triples(request: Request, name: str) -> list[tuple[int, int, int]]:
    """A list of three numbers each: [file, offset, length], or [rank, worker, batch]."""
    return [(first, second, third) for first, second, third in _lists(request, name, 3)]


def pairs(request: Request, name: str) -> list[tuple[int, int]]:
    """A list of [file, offset]."""
    return [(file, offset) for file, offset in _lists(request, name, 2)]


def _lists(request: Request, name: str, width: int) -> list[list[int]]:
    value = request.get(name, [])
    if not isinstance(value, list):
        raise ProtocolError(f"{name}: expected a list, got {_shown(value)}")
    for each in value:
        if (
            not isinstance(each, list)
            or len(each) != width
            or not all(type(n) is int and 0 <= n <= LARGEST for n in each)
        ):
            raise ProtocolError(f"{name}: expected lists of {width} numbers, got {_shown(each)}")
    return value


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."
