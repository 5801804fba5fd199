"""Jobs in a real engine: hints of several connections, orders computed once, positions, and their end."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from streaming.engine.hint import HintWorld
from streaming.errors import EngineError, ProtocolError
from streaming.order.epoch import rank_order
from streaming.order.world import World
from tests.mount.host import until

from .conftest import MIB, HandReader, spec_of, taken, write

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .conftest import Engine

    Start = Callable[..., Engine]

TWO_BY_TWO = HintWorld(1, 2, 2, 0, 2)


def expected(spec: Any, world: HintWorld, epoch: int, drop: int = 0) -> list[Any]:
    """What each rank of the host reads, computed by each for itself."""
    ranks = range(world.first_rank, world.first_rank + world.local_ranks)
    return [
        rank_order(spec, World(world.nodes, world.ranks_per_node, world.workers, rank * world.workers), epoch, drop)
        for rank in ranks
    ]


@pytest.mark.parametrize(
    ("world", "options", "drop"),
    [
        (TWO_BY_TWO, {}, 0),
        (TWO_BY_TWO, {"shuffle_algo": "py1br", "block_size": 50, "canonical_nodes": 2}, 16),
        (HintWorld(2, 4, 1, 4, 4), {"batching_method": "per_stream", "shuffle_algo": "py1s"}, 0),
        (HintWorld(4, 1, 3, 2, 1), {"shuffle": False}, 40),
    ],
)
def test_the_order_of_a_host(start: Start, folder: str, world: HintWorld, options: dict[str, Any], drop: int) -> None:
    """What the engine hands out equals what each rank computes for itself, also in mid-epoch."""
    spec = spec_of(**options)
    with start(16 * MIB).client() as client:
        reader = HandReader(client, folder)
        hinted = reader.send(reader.document(spec, world), 3, drop)
        found = taken(client.order(hinted.job, 3, 30))
        assert found.tolist() == np.array(expected(spec, world, 3, drop)).tolist()


def test_hints_of_one_job_are_one(start: Start, folder: str) -> None:
    """Two processes of a job share a job and its order; each lane is where its own reader is."""
    engine, spec = start(16 * MIB), spec_of()
    with engine.client() as one, engine.client() as two:
        first, second = HandReader(one, folder), HandReader(two, folder)
        a = first.send(first.document(spec, TWO_BY_TWO), places=[(0, 0, 0), (0, 1, 0)])
        b = second.send(second.document(spec, TWO_BY_TWO), places=[(1, 0, 0), (1, 1, 0)])
        orders = [one.order(a.job, 0, 30), two.order(b.job, 0, 30)]
        assert len({os.fstat(order.fd).st_ino for order in orders}) == 1
        for order in orders:
            taken(order)
        assert two.position(b.job, 0, [(1, 1, 5)])
        (job,) = second.jobs()
        assert job["orders"]["0"] == "ready"
        places = [(each["rank"], each["worker"], each["batch"]) for each in job["positions"]]
        assert places == [(0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 5)]
        assert job["warnings"] == []
        one.close()
        until(lambda: len(second.jobs()[0]["positions"]) == 2)


def test_other_jobs_share_an_equal_order(start: Start, folder: str) -> None:
    """Two runs with the same arguments are two jobs with one order."""
    engine, spec = start(16 * MIB), spec_of()
    with engine.client() as one, engine.client() as two:
        first, second = HandReader(one, folder, "a"), HandReader(two, folder, "b")
        hints = [each.send(each.document(spec, TWO_BY_TWO)) for each in (first, second)]
        orders = [client.order(hint.job, 0, 30) for client, hint in zip((one, two), hints, strict=True)]
        assert len({os.fstat(order.fd).st_ino for order in orders}) == 1
        for order in orders:
            taken(order)
        assert len(first.jobs()) == 2


def test_a_job_is_gone_with_its_readers(start: Start, folder: str) -> None:
    """In mid-epoch at once, by the connection's end or by a retraction."""
    engine, spec = start(16 * MIB), spec_of()
    with engine.client() as watcher:
        for end in ("close", "retract"):
            client = engine.client()
            reader = HandReader(client, folder)
            hinted = reader.send(reader.document(spec, TWO_BY_TWO))
            assert len(reader.jobs()) == 1
            client.close() if end == "close" else client.retract(hinted.job)
            until(lambda: HandReader(watcher, folder).jobs() == [])
            client.close()


def test_a_job_at_the_end_of_its_epoch_waits_for_the_next(start: Start, folder: str) -> None:
    """Its workers end between two epochs: the order of the next one, computed meanwhile, is there at once."""
    engine, spec = start(16 * MIB), spec_of()
    with engine.client() as one, engine.client() as two:
        first, second = HandReader(one, folder), HandReader(two, folder)
        hinted = first.send(first.document(spec, HintWorld()))
        batches = taken(one.order(hinted.job, 0, 30)).shape[2]
        assert "1" not in first.jobs()[0]["orders"]
        one.position(hinted.job, 0, [(0, 0, batches)])
        until(lambda: first.jobs()[0]["orders"] == {"0": "ready", "1": "ready"})
        one.close()
        until(lambda: second.jobs()[0]["readers"] == [])
        again = second.send(second.document(spec, HintWorld()), epoch=1)
        assert again.order is not None
        assert taken(again.order).tolist() == np.array(expected(spec, HintWorld(), 1)).tolist()
        assert second.jobs()[0]["orders"] == {"1": "ready"}


def test_a_resumed_job_has_another_order(start: Start, folder: str) -> None:
    """The same epoch entered elsewhere replaces the order that was there."""
    spec = spec_of()
    with start(16 * MIB).client() as client:
        reader = HandReader(client, folder)
        hinted = reader.send(reader.document(spec, HintWorld()))
        whole = taken(client.order(hinted.job, 0, 30))
        again = reader.send(reader.document(spec, HintWorld()), drop=100)
        rest = taken(client.order(again.job, 0, 30))
        assert (again.job, rest.size, whole.size) == (hinted.job, 100, 200)
        assert len(reader.jobs()) == 1


def test_several_streams_also_of_other_engines(start: Start, folder: str, tmp_path: Path) -> None:
    """A stream that this engine does not have comes with its shards' sizes."""
    from streaming.engine.hint import HintedStream
    from streaming.order.spec import OrderSpec, StreamSpec

    other = write(tmp_path / "other", 60)
    sizes = np.array([30, 30], np.int64)
    with start(16 * MIB).client() as client:
        reader = HandReader(client, folder)
        second = HandReader(client, other)
        options: dict[str, Any] = {"batch_size": 4, "canonical_nodes": 1, "shuffle": True}
        drawn = (200, 33, 60)
        spec = OrderSpec(
            tuple(
                StreamSpec(its, choose)
                for its, choose in zip((np.full(20, 10), sizes, np.full(6, 10)), drawn, strict=True)
            ),
            **options,
        )
        streams = (
            HintedStream(200, dataset=reader.dataset),
            HintedStream(33, sizes=sizes),
            HintedStream(60, dataset=second.dataset),
        )
        hinted = reader.send(reader.document(spec, HintWorld(), streams=streams))
        found = taken(client.order(hinted.job, 0, 30))
        assert found.tolist() == np.array(expected(spec, HintWorld(), 0)).tolist()
        datasets = reader.jobs()[0]["datasets"]
        assert [each is None for each in datasets] == [False, True, False]


def test_published_ids(start: Start, folder: str) -> None:
    """Ids as they are, for whoever plans; each epoch has its own."""
    ids = np.arange(200, dtype=np.int64)[::-1].reshape(1, 1, 50, 4)
    with start(16 * MIB).client() as client:
        reader = HandReader(client, folder)
        hint = reader.document(spec_of(), HintWorld(), order={}, ids=ids)
        hinted = reader.send(hint)
        assert hinted.order is None
        assert reader.jobs()[0]["source"] == "ids"
        assert reader.jobs()[0]["orders"] == {"0": "ready"}
        with pytest.raises(EngineError, match="published"):
            client.order(hinted.job, 0, 5)
        reader.send(hint, epoch=1)
        assert reader.jobs()[0]["orders"] == {"1": "ready"}


def test_a_reader_with_another_numpy_gets_no_order(start: Start, folder: str) -> None:
    """Its generators may draw otherwise; its hint is followed all the same."""
    with start(16 * MIB).client() as client:
        reader = HandReader(client, folder)
        hinted = reader.send(reader.document(spec_of(), HintWorld(), numpy="1.0"))
        until(lambda: reader.jobs()[0]["orders"] == {"0": "ready"})
        with pytest.raises(EngineError, match=r"numpy is .*, the reader's 1\.0"):
            client.order(hinted.job, 0, 5)


def test_positions_of_nobody(start: Start, folder: str) -> None:
    """A job that is not hinted here, lanes that the world has not: nothing happens but a warning."""
    with start(16 * MIB).client() as client:
        reader = HandReader(client, folder)
        hinted = reader.send(reader.document(spec_of(), TWO_BY_TWO))
        client.position(hinted.job, 0, [(7, 0, 1), (0, 9, 1)])
        client.position(99, 0, [(0, 0, 1)])
        client.retract(99)
        with pytest.raises(ProtocolError, match="not hinted"):
            client.order(99, 0, 1)
        with pytest.raises(ProtocolError, match="not begun"):
            client.order(hinted.job, 5, 1)
        (job,) = reader.jobs()
        assert [(each["rank"], each["worker"]) for each in job["positions"]] == [(0, 0)]
        assert len(job["warnings"]) == 2


def test_a_hint_needs_a_sealed_descriptor(start: Start, folder: str) -> None:
    """Without one, with a file, or with memory that could change, it is refused; the connection stays."""
    with start(16 * MIB).client() as client, contextlib.ExitStack() as opened:
        reader = HandReader(client, folder)
        unsealed = os.memfd_create("hint", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
        opened.callback(os.close, unsealed)
        os.write(unsealed, b"x" * 100)
        file = os.open(folder + "/index.json", os.O_RDONLY | os.O_CLOEXEC)
        opened.callback(os.close, file)
        for fd in (unsealed, file):
            with pytest.raises(ProtocolError, match="sealed"):
                client.hint(fd, 0, 0, [])
        with pytest.raises(ProtocolError, match="descriptors"):
            client.exchange.call({"op": "hint", "epoch": 0, "drop": 0, "at": []})
        assert reader.jobs() == []
