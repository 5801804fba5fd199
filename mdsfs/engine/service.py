"""The engine as a process: owns the directory, serves until told to end or nobody needs it, says when it is ready."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
from typing import TYPE_CHECKING

import trio

from mdsfs.supervision.notify import Supervisor
from streaming.sizes import format_size

from .cache.ledger import BLOCK
from .engine import Engine
from .metering import listen, serve_metrics, url_of
from .serving.server import listening, serve_clients
from .store.directory import CacheStore

if TYPE_CHECKING:
    import socket

    from .options import ServiceOptions

__all__ = ["serve", "tell"]

log = logging.getLogger(__name__)


def serve(options: ServiceOptions) -> int:
    """Run an engine to its end; returns the exit code. Raises what keeps it from starting.

    With `ready_fd`, that descriptor hears `ok` when clients can connect; errors are the caller's to `tell`. A
    supervisor that the environment names hears the same, and then that the engine's loop goes on turning.
    """
    supervisor = Supervisor.take()
    _raise_descriptor_limit()
    with (
        CacheStore.open(options.cache_dir) as store,
        listening(options.cache_dir, allow_other=options.allow_other) as listener,
        listen(options.metrics) if options.metrics else contextlib.nullcontext() as metrics,
    ):
        trio.run(_serve, options, store, listener, metrics, supervisor)
    return 0


def _raise_descriptor_limit() -> None:
    # Every file that is written into is open here and in a fetcher, which inherits the limit, beside its connections.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _serve(
    options: ServiceOptions,
    store: CacheStore,
    listener: socket.socket,
    metrics: socket.socket | None,
    supervisor: Supervisor,
) -> None:
    # From the outside in, and ended from the inside out: clients, then fills, then the fetchers that fills wait for.
    async with trio.open_nursery() as fetchers, trio.open_nursery() as work:
        engine = Engine(options, store, work)
        await fetchers.start(engine.pool.serve)
        work.start_soon(engine.ahead.run, name="ahead")
        work.start_soon(engine.planning.run, name="plan")
        await engine.sources.take_in()
        async with trio.open_nursery() as clients:
            clients.start_soon(serve_clients, engine, listener, name="clients")
            await clients.start(_end_on_signal, engine, name="signals")  # whoever was told "ok" may send one
            if metrics is not None:
                engine.metrics_url = url_of(metrics)
                clients.start_soon(serve_metrics, engine, metrics, name="metrics")
            if options.idle_exit is not None:
                clients.start_soon(_end_when_idle, engine, options.idle_exit, name="idle")
            tell(options.ready_fd, "ok")
            supervisor.ready(_describe(engine))
            if supervisor.address is not None:
                clients.start_soon(_keep_alive, engine, supervisor, name="supervisor")
            log.info(
                "engine pid=%d serves %s with a limit of %d bytes", os.getpid(), options.cache_dir, options.cache_limit
            )
            await engine.stopping.wait()
            supervisor.stopping("ending")
            clients.cancel_scope.cancel()
        work.cancel_scope.cancel()
        fetchers.cancel_scope.cancel()
    log.info("engine pid=%d ends", os.getpid())


async def _keep_alive(engine: Engine, supervisor: Supervisor) -> None:
    while True:
        await trio.sleep(supervisor.interval)
        supervisor.alive(_describe(engine))


def _describe(engine: Engine) -> str:
    used = format_size(engine.cache.ledger.statistics().used * BLOCK)
    limit = format_size(engine.options.cache_limit)
    return f"{used} of {limit}, {len(engine.sessions)} clients, {engine.fills.running} fills"


async def _end_on_signal(engine: Engine, *, task_status: trio.TaskStatus[None]) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            log.info("received %s", signal.Signals(number).name)
            engine.stop()


async def _end_when_idle(engine: Engine, seconds: float) -> None:
    while True:
        while engine.sessions:
            await engine.wait_clients_changed()
        while engine.fills.running:
            await engine.fills.wait_landing()
        patience, engine.dismissed = 0 if engine.dismissed else seconds, False
        with trio.move_on_after(patience):
            await engine.wait_clients_changed()
            continue
        if engine.is_idle:
            log.info("nobody needed the engine for %g s", patience)
            engine.stop()
            return


def tell(ready_fd: int | None, line: str) -> None:
    """Say once how the start went, to whoever waits for it, and close the descriptor."""
    if ready_fd is None:
        return
    with contextlib.suppress(OSError):  # nobody listens any more
        os.write(ready_fd, line.encode() + b"\n")
    os.close(ready_fd)
