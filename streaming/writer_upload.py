"""Uploading shards while the next ones are written.

Threads put files into the remote. The writing thread learns of a failure at its next call, and waits when the threads
fall behind, so that shards that are not uploaded yet never fill the disk.
"""

from __future__ import annotations

import threading
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

from streaming.errors import BucketMissingError, EndpointUnreachableError, MissingDependencyError, RemoteError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from streaming.remote import Remote

__all__ = ["Uploader"]

# One shard at a time saturates no store and many no network: peers use min(32, cores + 4), most of them idle.
_DEFAULT_WORKERS = 8


class Uploader:
    """Puts files into one remote."""

    def __init__(self, url: str, *, max_workers: int | None, attempts: int | None, progress_bar: bool) -> None:
        from streaming.remote import RemoteOptions, open_remote  # brings an SDK: only who uploads needs it

        overrides = {} if attempts is None else {"attempts": max(1, attempts)}
        self._remote = open_remote(url, RemoteOptions.from_environment(**overrides))
        _look(self._remote)
        workers = max_workers or _DEFAULT_WORKERS
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="upload")
        self._room = threading.Semaphore(2 * workers)
        self._running: set[Future[None]] = set()
        self._bar = _progress_bar(url) if progress_bar else None

    def put(self, key: str, path: Path, done: Callable[[Path], None]) -> None:
        """Uploads a file in the background, then calls `done`. Raises what an earlier upload failed with."""
        self.check()
        while not self._room.acquire(timeout=1):
            self.check()
        self._running.add(self._pool.submit(self._put, key, path, done))

    def _put(self, key: str, path: Path, done: Callable[[Path], None]) -> None:
        try:
            self._remote.put(key, path)
            done(path)
        finally:
            self._room.release()

    def check(self) -> None:
        """Raises what an upload failed with, if one did."""
        for future in [future for future in self._running if future.done()]:
            self._running.discard(future)
            if self._bar is not None:
                self._bar.update()
            future.result()

    def finish(self) -> None:
        """Returns when every file is in the remote. Raises what one failed with, without waiting for the others."""
        while self._running:
            wait(self._running, return_when=FIRST_EXCEPTION)
            self.check()

    def close(self, *, cancel: bool = False) -> None:
        """Ends the threads; with `cancel`, uploads that have not begun don't."""
        self._pool.shutdown(wait=True, cancel_futures=cancel)
        if self._bar is not None:
            self._bar.close()


def _look(remote: Remote) -> None:
    """Raises for a bucket that is not there, or a server that does not answer, before a sample is written in vain."""
    try:
        next(iter(remote.list("index.json")), None)
    except (BucketMissingError, EndpointUnreachableError):
        raise
    except RemoteError:
        pass  # who may not list may still write


def _progress_bar(url: str) -> Any:
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise MissingDependencyError("progress_bar needs tqdm: pip install 'mdsfs[progress]'") from error
    return tqdm(desc=f"upload to {url}", unit="file")
