"""What is wrong at the moment, and what was: one line in the log when a trouble begins, one when it has ended.

Stores and disks fail a thousand times a second when they fail. Here the same trouble is told once, counted, and shown
in status for as long as it lasts. No clock of its own decides anything: a trouble ends when the thing works again.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from streaming.errors import CredentialsRefusedError, EndpointUnreachableError, ReadTimeoutError, ThrottledError

if TYPE_CHECKING:
    from streaming.errors import StreamingError

__all__ = ["CREDENTIALS", "DISK", "STORE", "TROUBLES", "Health"]

log = logging.getLogger(__name__)

DISK, STORE, CREDENTIALS = "cache-disk", "store", "credentials"
TROUBLES = (DISK, STORE, CREDENTIALS)
# Different subjects (sources) that are told apart; with more, the oldest is forgotten.
MOST = 64

# What an error of a fetch says about the store as a whole: others concern one object.
_KINDS: tuple[tuple[type[StreamingError], str], ...] = (
    (CredentialsRefusedError, CREDENTIALS),
    (EndpointUnreachableError, STORE),
    (ReadTimeoutError, STORE),
    (ThrottledError, STORE),
)


@dataclass(slots=True)
class Trouble:
    """Something that does not work now. `since` and `last`: seconds since 1970."""

    what: str
    subject: str
    message: str
    since: float
    last: float
    times: int = 1


class Health:
    """The present troubles of one engine."""

    def __init__(self) -> None:
        self._troubles: dict[tuple[str, str], Trouble] = {}
        self.begun = dict.fromkeys(TROUBLES, 0)
        """How often each kind of trouble has begun."""

    def __repr__(self) -> str:
        return f"Health({len(self._troubles)} troubles)"

    def failed(self, what: str, subject: str, message: str) -> None:
        """It does not work; said in the log if it did until now."""
        now = time.time()
        known = self._troubles.get((what, subject))
        if known is not None:
            known.times += 1
            known.last, known.message = now, message
            return
        self.begun[what] += 1
        self._troubles[what, subject] = Trouble(what, subject, message, now, now)
        while len(self._troubles) > MOST:
            del self._troubles[next(iter(self._troubles))]
        log.error("%s", message, extra={"event": f"{what}-fails", "subject": subject})

    def works(self, what: str, subject: str) -> None:
        """It works; said in the log if it did not until now."""
        if not self._troubles:
            return
        known = self._troubles.pop((what, subject), None)
        if known is not None:
            log.warning(
                "%s works again after %.0f s and %d failures",
                subject,
                max(0.0, time.time() - known.since),
                known.times,
                extra={"event": f"{what}-works", "subject": subject},
            )

    def is_failing(self, what: str, subject: str) -> bool:
        """Whether that is a present trouble."""
        return (what, subject) in self._troubles

    def fetched(self, url: str) -> None:
        """A fetch from this source has succeeded."""
        self.works(STORE, url)
        self.works(CREDENTIALS, url)

    def not_fetched(self, url: str, error: StreamingError) -> None:
        """A fetch has failed for good."""
        for kind, what in _KINDS:
            if isinstance(error, kind):
                self.failed(what, url, str(error))
                return

    @staticmethod
    def is_told(error: StreamingError) -> bool:
        """Whether this failure of a fetch is one that `not_fetched` tells as a trouble."""
        return isinstance(error, tuple(kind for kind, _ in _KINDS))

    def snapshot(self) -> list[dict[str, Any]]:
        """The present troubles, oldest first."""
        return [asdict(each) for each in self._troubles.values()]
