"""The way to the store, as far as the plan looks at it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Link"]


@dataclass(frozen=True, slots=True)
class Link:
    """What is known of the way to the store."""

    bandwidth: float = 125e6
    """Bytes per second."""
    latency: float = 0.03
    """Seconds until the first byte."""
    request: float = 0.0005
    """Seconds of the link, or of a processor, that a request costs beside its bytes."""

    @property
    def in_flight(self) -> int:
        """Bytes that must be on their way for the link to be busy."""
        return int(self.bandwidth * self.latency)

    @property
    def gap(self) -> int:
        """Bytes that may be fetched for nothing if that saves a request."""
        return int(self.bandwidth * self.request)
