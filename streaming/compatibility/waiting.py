"""Trying again, waiting for a file, and what needs no cleaning up."""

from __future__ import annotations

import functools
import logging
import os
import random
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["clean_stale_shared_memory", "retry", "wait_for_file_to_exist"]

logger = logging.getLogger(__name__)


def wait_for_file_to_exist(filename: str, poll_interval: float, timeout: float, err_msg: str) -> None:
    """Returns when the file is there, looked for every `poll_interval` seconds.

    Raises RuntimeError, its text `err_msg` and the times, after more than `timeout` seconds.
    """
    start = time.monotonic()
    while not os.path.exists(filename):
        waited = time.monotonic() - start
        if waited > timeout:
            raise RuntimeError(f"{err_msg}{timeout:.3f} < {waited:.3f} secs.")
        time.sleep(poll_interval)


def retry(
    exc_class: Any = Exception,
    clean_up_fn: Callable[[], None] | None = None,
    num_attempts: int = 3,
    initial_backoff: float = 1.0,
    max_jitter: float = 0.5,
) -> Any:
    """A decorator that calls the function again when it raises `exc_class`; also usable without parentheses.

    Args:
        exc_class: The exception, or several, worth another attempt.
        clean_up_fn: Called after every failed attempt, the last one too.
        num_attempts: Attempts in all, at least 1. The exception of the last one is raised.
        initial_backoff: Seconds before the second attempt; doubled before each further one.
        max_jitter: Seconds, up to which a random time is added.
    """
    if num_attempts < 1:
        raise ValueError("num_attempts must be at-least 1")
    if not isinstance(exc_class, type) and callable(exc_class):
        return retry(Exception, clean_up_fn, num_attempts, initial_backoff, max_jitter)(exc_class)
    caught: tuple[type[Exception], ...] = (exc_class,) if isinstance(exc_class, type) else tuple(exc_class)

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def attempt(*args: Any, **kwargs: Any) -> Any:
            for number in range(num_attempts):
                try:
                    return function(*args, **kwargs)
                except caught as error:
                    logger.debug("Attempt %d/%d failed with: %s", number + 1, num_attempts, error)
                    if clean_up_fn is not None:
                        clean_up_fn()
                    if number + 1 == num_attempts:
                        raise
                time.sleep(initial_backoff * 2**number + random.random() * max_jitter)
            raise AssertionError("a loop of at least one attempt returns or raises")

        return attempt

    return decorate


def clean_stale_shared_memory() -> None:
    """Does nothing: datasets here have no shared memory segments, so a killed run leaves none behind.

    Segments of mosaicml-streaming itself are not removed either: they may be a running job's.
    """
