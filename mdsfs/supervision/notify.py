"""What a service tells its supervisor: ready, alive, ending, and one line of status (systemd's sd_notify protocol).

Without a supervisor nothing is said. A datagram that can't be delivered is dropped: telling must never stop the work.
"""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import MutableMapping

__all__ = ["Supervisor"]

# Without a watchdog nothing depends on it: as fresh as somebody who looks at `systemctl status` expects.
STATUS_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Supervisor:
    """The supervisor's socket (None: nobody supervises) and how often it wants to hear from us, in seconds."""

    address: str | None = None
    watchdog: float | None = None

    @classmethod
    def take(cls, environment: MutableMapping[str, str] | None = None) -> Self:
        """What the environment says, which is taken out of it: children are not the service."""
        environment = os.environ if environment is None else environment
        address = environment.pop("NOTIFY_SOCKET", None) or None
        micros, pid = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
        watched = micros.isdigit() and int(micros) > 0 and pid in ("", str(os.getpid()))
        return cls(address, int(micros) / 1e6 if address and watched else None)

    @property
    def interval(self) -> float:
        """Seconds between two signs of life: three fit into the watchdog's time, so that one may be late."""
        return STATUS_SECONDS if self.watchdog is None else min(STATUS_SECONDS, self.watchdog / 3)

    def ready(self, status: str) -> None:
        """The service does its work."""
        self._send("READY=1", f"STATUS={_line(status)}")

    def alive(self, status: str) -> None:
        """The service still does its work."""
        self._send("WATCHDOG=1", f"STATUS={_line(status)}")

    def status(self, status: str) -> None:
        """One line for people. It is no sign of life."""
        self._send(f"STATUS={_line(status)}")

    def stopping(self, status: str) -> None:
        """The service is ending."""
        self._send("STOPPING=1", f"STATUS={_line(status)}")

    def _send(self, *lines: str) -> None:
        if self.address is None:
            return
        # A leading @ stands for the zero byte of an abstract name.
        name = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to:
            to.setblocking(False)
            to.sendto("\n".join(lines).encode(), name)


def _line(text: str) -> str:
    return " ".join(text.split())
