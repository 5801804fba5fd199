"""One mount from its start to its end: connect, build the tree, mount, prove that it answers, serve, unmount.

Owns the order of these steps, the signals and the FUSE session (one per process). The mountpoint is never touched
from the loop's own thread: the daemon would wait for itself.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import tempfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyfuse3
import trio

from mdsfs.errors import FuseUnavailableError, MountpointError
from mdsfs.supervision.notify import Supervisor
from mdsfs.supervision.probe import keep_alive
from streaming.engine.messages import PROTOCOL
from streaming.errors import StreamingError

from .cachefiles import raise_descriptor_limit
from .daemon import Outcome
from .hinting import MountHint
from .link import Link
from .mountpoint import mount_at
from .operations import Handlers, Ownership
from .session import Attached, SourceOptions
from .status import StatusDocument
from .tree import Dataset, Tree, build_tree
from .tuning import tune

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from streaming.engine.spawn import EngineOptions

    from .ordering import OrderOptions

__all__ = ["MountConfig", "serve"]

log = logging.getLogger(__name__)

# Each request under way occupies a task until it is answered: with pyfuse3's 99, that many slow reads would stop every
# `ls`.
MAX_TASKS = 1024
# The mount answers its first read within milliseconds, or something between the kernel and us is wrong.
READY_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class MountConfig:
    """Everything that one mount needs to know; paths are absolute and the mountpoint is a real path."""

    source: str
    mountpoint: str
    engine: EngineOptions
    identity: dict[str, Any]
    ownership: Ownership
    validate: str | None = None
    read_timeout: float = 60.0
    allow_other: bool = False
    spawn: bool = True
    order: OrderOptions | None = None
    fuse_options: tuple[str, ...] = field(default=())

    def mount_options(self) -> set[str]:
        """Options for libfuse: read-only, and nothing on it may be executed or be a device, whatever its modes say."""
        name = self.source.replace("\\", "\\\\").replace(",", "\\,")
        options = {"ro", "nosuid", "nodev", "noexec", "default_permissions", f"fsname={name}", "subtype=mdsfs"}
        options.update(self.fuse_options)
        return options | {"allow_other"} if self.allow_other else options


def serve(config: MountConfig, ready: Callable[[Outcome], None]) -> int:
    """Mount and serve until unmounted or told to end by SIGTERM or SIGINT; `ready` is called when the mount answers.

    A supervisor that the environment names hears the same, and then that the mount goes on answering.
    Raises what kept it from mounting. Returns the exit code.
    """
    return trio.run(_serve, config, ready, Supervisor.take())


async def _serve(config: MountConfig, ready: Callable[[Outcome], None], supervisor: Supervisor) -> int:
    source = SourceOptions(config.source, config.identity, config.validate, config.mountpoint)
    descriptors = raise_descriptor_limit()
    link = Link(config.engine, source, read_timeout=config.read_timeout, descriptors=descriptors, spawn=config.spawn)
    failure: BaseException | None = None
    async with _ended_by_signal(link) as nursery:
        try:
            supervisor.status(f"opening {config.source}")
            await nursery.start(link.run)
            await _mounted(config, link, ready, supervisor)
        except (StreamingError, OSError) as error:
            failure = error  # raised below: through the nursery it would come out as a group
            await link.dismiss_engine()
        nursery.cancel_scope.cancel()
    link.close()
    if failure is not None:
        raise failure
    return 0


async def _mounted(config: MountConfig, link: Link, ready: Callable[[Outcome], None], supervisor: Supervisor) -> None:
    """From the finished tree to the end of the mount."""
    tree = build_tree([_dataset(each) for each in link.known])
    status = StatusDocument(tree, link, config.mountpoint, config.source)
    hint = _hint(config, link)
    handlers = Handlers(tree, link, config.ownership, status, _engine_attribute(config, link))
    handlers.watch = status.hint = hint
    _init(handlers, config)
    unmount = True
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.tell_touched)
            if hint is not None:
                nursery.start_soon(hint.run)
            nursery.start_soon(link.report, handlers.report)
            announcing = _Announcing(config, tree, link, status, ready, supervisor)
            nursery.start_soon(announcing.run)
            await pyfuse3.main(max_tasks=MAX_TASKS)
            supervisor.stopping(f"{config.mountpoint} was unmounted")
            nursery.cancel_scope.cancel()
    except ExceptionGroup:
        # After a fault of ours the dead mount stays visible: an empty directory would pass for an empty dataset.
        unmount = False
        raise
    finally:
        pyfuse3.close(unmount=unmount)
    if announcing.failure is not None:
        raise announcing.failure


@dataclass(slots=True)
class _Announcing:
    """Says that the mount is there, once it has answered a real read; ends the mount if it does not.

    From then on tells the supervisor, if there is one, that it still answers.
    """

    config: MountConfig
    tree: Tree
    link: Link
    status: StatusDocument
    ready: Callable[[Outcome], None]
    supervisor: Supervisor
    failure: MountpointError | None = None

    async def run(self) -> None:
        mountpoint = self.config.mountpoint
        path = os.path.join(mountpoint, ".mdsfs", "status")
        try:
            with trio.fail_after(READY_SECONDS):
                await trio.to_thread.run_sync(_read_once, path, abandon_on_cancel=True)
        except trio.TooSlowError:
            self._end(MountpointError(f"{mountpoint} was mounted but does not answer"))
        except OSError as error:
            self._end(MountpointError(f"{mountpoint} was mounted but answers: {error.strerror}"))
        else:
            # not sooner: as long as the kernel has not seen our answer to its INIT, that sets read-ahead back
            entry = mount_at(mountpoint)
            if entry is not None:
                self.status.tuning = await trio.to_thread.run_sync(tune, entry.device)
            log.info("%s is mounted at %s: %s", self.config.source, mountpoint, self.tree)
            self.ready(Outcome((*self.link.warnings, *self._hidden())))
            self.supervisor.ready(self._describe())
            if self.supervisor.address is not None:
                await keep_alive(self.supervisor, path, self._describe)

    def _describe(self) -> str:
        trouble = "" if self.link.last_error is None else f"; reads wait: {self.link.last_error}"
        return f"{self.tree.file_count} files of {self.config.source} at {self.config.mountpoint}{trouble}"

    def _hidden(self) -> list[str]:
        hidden = self.tree.hidden
        return [f"{len(hidden)} objects are not shown, the first: {hidden[0]}"] if hidden else []

    def _end(self, failure: MountpointError) -> None:
        self.failure = failure
        pyfuse3.terminate()


def _read_once(path: str) -> None:
    # Being refused is an answer too: --uid and --file-mode may shut out the one who mounts.
    with contextlib.suppress(PermissionError), open(path, "rb") as file:
        file.read(4096)


def _init(handlers: Handlers, config: MountConfig) -> None:
    """Mount. libfuse prints its reason and returns a bare failure, so what it prints is caught for the message."""
    with tempfile.TemporaryFile() as said:
        try:
            with _stderr_into(said.fileno()):
                pyfuse3.init(handlers, config.mountpoint, config.mount_options())
        except RuntimeError as error:
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines()
            reason = lines[-1] if lines else str(error)
            raise FuseUnavailableError(f"cannot mount on {config.mountpoint}: {reason}") from error


@contextlib.contextmanager
def _stderr_into(fd: int) -> Iterator[None]:
    saved = os.dup(2)
    os.dup2(fd, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


@contextlib.asynccontextmanager
async def _ended_by_signal(link: Link) -> AsyncIterator[trio.Nursery]:
    """A nursery that signals end: by unmounting where something is mounted, else by cancelling."""
    # SIGHUP too: a terminal that closes must not leave a dead mount behind.
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:

            async def wait_for_signal() -> None:
                async for number in signals:
                    log.info("ending: %s", signal.Signals(number).name)
                    link.give_up_reads()
                    if pyfuse3.trio_token is None:
                        nursery.cancel_scope.cancel()
                    else:
                        pyfuse3.terminate()

            nursery.start_soon(wait_for_signal)
            yield nursery


def _hint(config: MountConfig, link: Link) -> MountHint | None:
    if config.order is None:
        return None
    prefix = config.order.dataset
    found = [n for n, each in enumerate(link.known) if each.kind == "mds" and each.prefix.strip("/") == prefix]
    if not found:
        shown = ", ".join(each.prefix or "." for each in link.known if each.kind == "mds")
        raise MountpointError(f"--order: no dataset at {prefix or '.'}: expected dataset=… to be one of {shown}")
    return MountHint(config.order, link, found[0], f"mount {config.mountpoint}"[:150])


def _dataset(attached: Attached) -> Dataset:
    size = os.fstat(attached.index_fd).st_size if attached.index_fd is not None else None
    return Dataset(attached.prefix, attached.tables, size, attached.mtime_ns)


def _engine_attribute(config: MountConfig, link: Link) -> dict[str, Any]:
    return {
        "socket": str(link.socket_path),
        "protocol": PROTOCOL,
        "url": config.source,
        "identity": config.identity,
        "validate": config.validate,
    }
