"""Where log lines go and what they look like: the one place that sets up logging, for engine, mount and children.

Three forms. `text` is for people; `json` has one object per line; `journald` is text with the priority in front
(`<3>` an error, `<4>` a warning), which the journal takes out again. What is worth waking somebody for is an error or
a warning with an `event`: it is told once when it begins and once when it has ended, not for every read it concerns.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FORMATS", "LEVELS", "start", "start_child"]

LEVELS = ("error", "warning", "info", "debug")
FORMATS = ("text", "json", "journald")
# A log tells every eviction; it must not fill the disk that the cache is careful with.
LOG_SIZE, LOG_FILES = 16 << 20, 2
SYSLOG = "/dev/log"
# How children learn the form: their lines are between their parent's.
VARIABLE = "MDSFS_LOG_FORMAT"

_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# What a line may carry beside its message (`extra=`).
_FIELDS = ("event", "subject")


class JsonFormatter(logging.Formatter):
    """One object per line: time (UTC), level, logger, pid, message, and event and subject where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        found: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "message": record.getMessage(),
        }
        found |= {name: record.__dict__[name] for name in _FIELDS if name in record.__dict__}
        if record.exc_info:
            found["exception"] = self.formatException(record.exc_info)
        return json.dumps(found, default=str)


class _Rotating(logging.handlers.RotatingFileHandler):
    """Looks at the file's size alone; the standard one formats each line twice and asks what kind of file it is."""

    def shouldRollover(self, record: logging.LogRecord) -> bool:
        """Whether the file is full; it is longer than it should by one line at most."""
        return self.stream is not None and os.fstat(self.stream.fileno()).st_size >= self.maxBytes


class JournalFormatter(logging.Formatter):
    """Text with the priority in front of each line; time and process are the journal's own."""

    def format(self, record: logging.LogRecord) -> str:
        """The lines."""
        priority = next((number for level, number in _PRIORITIES if record.levelno >= level), 7)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).split("\n"))


def start(level: str, *, form: str | None = None, file: Path | None = None, syslog: bool = False) -> None:
    """Log from here on. To a file (rotated), else to syslog where that is asked for and there is one, else to stderr.

    Without `form`: `journald` where stderr is the journal, else `text`.
    """
    handler: logging.Handler
    if file is not None:
        form = "json" if form == "json" else "text"  # priorities are for the journal alone
        handler = _Rotating(file, maxBytes=LOG_SIZE, backupCount=LOG_FILES)
    elif syslog and os.path.exists(SYSLOG):
        form = "json" if form == "json" else "text"
        handler = logging.handlers.SysLogHandler(SYSLOG)
        handler.ident = f"mdsfs[{os.getpid()}]: "
    else:
        form = form or ("journald" if _stderr_is_the_journal() else "text")
        handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(form, _TEXT))
    os.environ[VARIABLE] = form
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def start_child(name: str, level: int = logging.WARNING) -> None:
    """Log from here on in a child of an engine, to stderr and in the form of its parent."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(os.environ.get(VARIABLE, "text"), f"{name} %(process)d: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)


def _formatter(form: str, text: str) -> logging.Formatter:
    if form == "json":
        return JsonFormatter()
    if form == "journald":
        return JournalFormatter(text.removeprefix("%(asctime)s %(levelname)s "))
    return logging.Formatter(text)


def _stderr_is_the_journal() -> bool:
    """Whether systemd has connected this very stderr to the journal (it says which one that is)."""
    try:
        found = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"
