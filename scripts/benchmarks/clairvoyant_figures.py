"""The figures of `scripts/bench clairvoyant`, one function each: what is run, and what the bars are.

U is what an epoch reads, C the cache limit, B the link's bandwidth, L its latency. Bytes are the server's own count.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING

from clairvoyant_data import EXTRA, KIB, MIB
from clairvoyant_stage import MDSFS, ROOT, steady_limit

from mdsfs.plan.bounds import lower_bound

if TYPE_CHECKING:
    from collections.abc import Callable

    from clairvoyant_stage import Epoch, Stage

    Figure = Callable[[Stage], None]

GIGABIT = 125e6
SEED = {"shuffle_seed": 9176, "batch_size": 32}
# Blocks of some sixteen shards keep the live window at a tenth of the dataset: every ratio below is above it.
BLOCKS = SEED | {"shuffle_block_size": 256}
# A cache of 5 %, far below the live window of the default shuffle.
SMALL = 0.05


def steady(stage: Stage) -> None:
    """F1, F2: steady epochs of a block shuffle in caches above the live window."""
    data = stage.data("blocks")
    stage.link.shape(GIGABIT, 0.002)
    epochs = 3
    stage.note(f"live window of the block shuffle: {data.window(BLOCKS) / data.bytes:.2f} of the dataset")
    for ratio in (0.5, 0.9) if stage.quick else (0.25, 0.5, 0.75, 0.9):
        limit = steady_limit(data, ratio)
        with stage.disk(limit) as disk, stage.contestant() as ours:
            ours.open(**stage.source(data, disk, limit, **BLOCKS))
            runs = [ours.epoch() for _ in range(epochs)]
            # C is what the limit leaves for data: index and tables are in the cache as well
            room = limit - stage.status(disk)["cache"]["fixed_bytes"]
        fetched = sum(run.sent.bytes for run in runs[1:])
        bound = lower_bound(data.bytes, room) * (epochs - 1)
        stage.row("F1", f"bytes of a steady epoch / (U - C), C/U = {ratio}", fetched / bound, 1.05)
        stage.row(
            "F2", f"the same / Belady on shards, C/U = {ratio}", fetched / data.belady(BLOCKS, room, epochs), 1.02
        )


def delivered(stage: Stage) -> None:
    """F3: the default shuffle in a cache of 5 %: bytes fetched over bytes delivered."""
    stage.link.shape(GIGABIT, 0.01)
    names = ["s16", "s64", "frames", "frame-each"] if stage.quick else ["s16", "s64", "s200", "frames", "frame-each"]
    for name in names:
        data = stage.data(name)
        limit = steady_limit(data, SMALL)
        with stage.disk(limit) as disk, stage.contestant() as ours:
            ours.open(**stage.source(data, disk, limit, **SEED))
            run = ours.epoch()
        if name == "frames":
            what, least = "compressed bytes of the frames touched", data.frames_touched(SEED)
        elif name == "frame-each":
            what, least = "the samples' own compressed bytes", data.bytes
        else:
            what, least = "bytes delivered", run.delivered + EXTRA * run.samples
        stage.row("F3", f"bytes fetched / {what}, {name}, C/U = {limit / data.bytes:.2f}", run.sent.bytes / least, 1.2)


def all_fits(stage: Stage) -> None:
    """F4: a cache that holds everything: each byte once in the first epoch, none later."""
    data = stage.data("blocks")
    stage.link.shape(GIGABIT, 0.01)
    limit = steady_limit(data, 1.2)
    for name, order in (("block shuffle", BLOCKS), ("default shuffle", SEED)):
        with stage.disk(limit) as disk, stage.contestant() as ours:
            ours.open(**stage.source(data, disk, limit, **order))
            first, second = ours.epoch(), ours.epoch()
        stage.row("F4", f"first epoch / (U + index), {name}", first.sent.bytes / (data.bytes + data.index_bytes), 1.01)
        stage.row("F4", f"bytes of the second epoch, {name}", second.sent.bytes, 0)


def shared(stage: Stage) -> None:
    """F5: two jobs of two ranks with two workers each, at once on one cache: each byte once."""
    data = stage.data("blocks")
    stage.link.shape(GIGABIT, 0.01)
    limit = steady_limit(data, 1.2)
    with stage.disk(limit) as disk:
        before = stage.server.sent()
        places = [{"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"} for rank in (0, 1)] * 2
        readers = []
        try:
            for place in places:
                opened = stage.contestant(**place)
                readers.append((opened, opened.__enter__()))
                readers[-1][1].open(workers=2, **stage.source(data, disk, limit, **BLOCKS))
            for _, reader in readers:
                reader.ask("epoch", step=0.0)
            samples = sum(reader.answer()["samples"] for _, reader in readers)
        finally:
            for opened, _ in readers:
                opened.__exit__(None, None, None)
        sent = stage.server.sent() - before
    stage.row(
        "F5", "bytes fetched / U, 2 jobs × 2 ranks × 2 workers", sent.bytes / (data.bytes + data.index_bytes), 1.01
    )
    stage.row("F5", "samples read / samples of both jobs", samples / (2 * data.recipe.samples), 1.0, at_least=True)


def first_batch(stage: Stage) -> None:
    """F6, F7: from `next()` to the first batch, the index loaded, default shuffle, 64 MB shards."""
    data = stage.data("large")
    latency = 0.05
    stage.link.shape(GIGABIT, latency)
    limit = 128 * MIB
    found = []
    for _ in range(2 if stage.quick else 5):
        with stage.disk(limit) as disk, stage.contestant() as ours:
            ours.open(**stage.source(data, disk, limit, **SEED))
            found.append(ours.epoch(most=1))
    size = found[0].delivered + EXTRA * found[0].samples
    ideal = 3 * latency + size / GIGABIT + 0.0002 * found[0].samples
    seconds = statistics.median(run.first for run in found)
    stage.row("F6", "first batch / (3 L + its bytes / B + 0.2 ms a request)", seconds / ideal, 1.5)
    shard = latency + int(data.stored[0]) / GIGABIT
    stage.row("F7", "first batch / one whole shard of 64 MB", seconds / shard, 0.3)


def stalls(stage: Stage) -> None:
    """F8: a step time at which the link suffices: no stall after the start, none at the boundary of epochs."""
    data = stage.data("blocks")
    stage.link.shape(GIGABIT, 0.05)
    limit = steady_limit(data, 0.5)
    steps = data.recipe.samples // SEED["batch_size"]
    step = 1.25 * data.bytes / GIGABIT / steps
    with stage.disk(limit) as disk, stage.contestant() as ours:
        ours.open(**stage.source(data, disk, limit, **BLOCKS))
        runs = [ours.epoch(step) for _ in range(2 if stage.quick else 3)]
    stall = sum(run.stall for run in runs) / (len(runs) * steps * step)
    stage.row("F8", "stall after the start / compute, link at 80 %", stall, 0.05)
    boundary = max(run.first for run in runs[1:])
    stage.row("F8", "wait for an epoch's first batch / one step", boundary / step, 1.0)


def link_use(stage: Stage) -> None:
    """F9: the link while the reader is behind, ranges of 32 KiB and more; ranges a second below."""
    data = stage.data("s64")
    limit = 48 * MIB
    for latency in (0.01, 0.1) if stage.quick else (0.001, 0.01, 0.1):
        stage.link.shape(GIGABIT, latency)
        with stage.disk(limit) as disk, stage.contestant() as ours:
            ours.open(**stage.source(data, disk, limit, **SEED))
            run = ours.epoch()
        share = run.sent.bytes / (run.wall - run.first) / GIGABIT
        stage.row("F9", f"link used while behind, 64 KiB samples, {latency * 1e3:g} ms", share, 0.9, at_least=True)
    stage.link.shape(GIGABIT, 0.01)
    small = stage.data("s4")
    limit = steady_limit(small, 0.25)
    with stage.disk(limit) as disk, stage.contestant() as ours:
        ours.open(**stage.source(small, disk, limit, **SEED | {"batch_size": 256}))
        run = ours.epoch()
    rate = run.samples / (run.wall - run.first)
    stage.row("F9", "ranges of 4 KiB a second, 10 ms", rate, 5000, at_least=True)
    stage.note(f"4 KiB samples: {run.sent.requests} requests for {run.samples} samples")


def tight(stage: Stage) -> None:
    """F11: a cache smaller than a shard still completes."""
    data = stage.data("large")
    stage.link.shape(0, 0.001)
    limit = 8 * MIB
    for name, order in (("default shuffle", SEED), ("block shuffle", BLOCKS)):
        with stage.disk(limit) as disk, stage.contestant() as ours:
            ours.open(**stage.source(data, disk, limit, **order))
            run = ours.epoch(most=64)
        stage.row("F11", f"samples read in a cache of 1/8 shard, {name}", run.samples, 64 * 32, at_least=True)


def prefetched(stage: Stage) -> None:
    """Reading what was fetched ahead by ranges, beside reading whole shards that are there."""
    data = stage.data("s64")
    stage.link.shape(0, 0.001)
    step, most = 0.05, 40
    rates = {}
    for name, limit in (("ranges", 64 * MIB), ("shards", steady_limit(data, 1.2))):
        with stage.disk(limit) as disk, stage.contestant() as ours:
            ours.open(**stage.source(data, disk, limit, **SEED))
            if name == "shards":
                ours.epoch()
            run = ours.epoch(step, most=most)
        # what is left of waiting when all of it is there: the reading itself
        rates[name] = 1 / statistics.median(run.waits[most // 2 :])
    stage.row(
        "", "rate over prefetched ranges / over whole shards", rates["ranges"] / rates["shards"], 0.5, at_least=True
    )


def resume(stage: Stage) -> None:
    """Resuming in mid-epoch: the first batch at once, the plan soon, and nothing fetched that lies behind."""
    data = stage.data("s64")
    latency = 0.02
    stage.link.shape(GIGABIT, latency)
    limit = 48 * MIB
    half = data.recipe.samples // 2
    state = {"epoch": 0, "sample_in_epoch": half, "num_canonical_nodes": 1, "shuffle_seed": 9176}
    with stage.disk(limit) as disk, stage.contestant() as ours:
        ours.open(**stage.source(data, disk, limit, **SEED))
        run = ours.epoch(resume=state | {"initial_physical_nodes": 1})
    size = run.delivered * SEED["batch_size"] / run.samples
    ideal = 3 * latency + size / GIGABIT + 0.0002 * SEED["batch_size"]
    stage.row("", "first batch after a resume / the same bar as F6", run.first / ideal, 1.5)
    rest = (run.delivered + EXTRA * run.samples) * 1.0
    stage.row("", "bytes fetched after a resume / bytes of the rest", run.sent.bytes / rest, 1.2)


def beside_peer(stage: Stage) -> None:
    """mosaicml-streaming in the same run, under the same link and limit."""
    data = stage.data("tiny")
    stage.link.shape(GIGABIT, 0.05)
    blocks = BLOCKS | {"shuffle_block_size": 512}
    for ratio in (0.5,) if stage.quick else (0.5, 0.9):
        runs = {}
        for peer in (False, True):
            limit = steady_limit(data, ratio)
            with stage.disk(limit, peer=peer) as disk, stage.contestant(peer=peer) as contestant:
                contestant.open(**stage.source(data, disk, limit, **blocks))
                runs[peer] = [contestant.epoch() for _ in range(3)]
        _same_samples(runs[False], runs[True])
        for text, value in (
            ("bytes of steady epochs", lambda run: sum(each.sent.bytes for each in run[1:])),
            ("time to first batch", lambda run: run[0].first),
            ("wall of the first epoch", lambda run: run[0].wall),
            ("wall of steady epochs", lambda run: sum(each.wall for each in run[1:])),
        ):
            mine, theirs = value(runs[False]), value(runs[True])
            stage.note(
                f"{text}, C/U = {ratio}: ours {mine:.3g}, peer {theirs:.3g}, bound "
                f"{2 * lower_bound(data.bytes, limit):.3g}"
                if "bytes" in text
                else f"{text}, C/U = {ratio}: ours {mine:.3g} s, peer {theirs:.3g} s"
            )
            stage.row("", f"{text}, ours / peer, block shuffle, C/U = {ratio}", mine / theirs, 1.0)
    limit, most = steady_limit(data, 0.25), 16
    both = {}
    for peer in (False, True):
        with stage.disk(limit, peer=peer) as disk, stage.contestant(peer=peer) as contestant:
            contestant.open(**stage.source(data, disk, limit, **SEED))
            both[peer] = contestant.epoch(most=most)
    _same_samples([both[False]], [both[True]])
    ours, theirs = both[False], both[True]
    for text, mine, his in (
        ("bytes fetched for 16 batches", ours.sent.bytes, theirs.sent.bytes),
        ("time to first batch", ours.first, theirs.first),
        ("wall of 16 batches", ours.wall, theirs.wall),
    ):
        stage.note(f"{text}, default shuffle: ours {mine:.3g}, peer {his:.3g}")
        stage.row("", f"{text}, ours / peer, default shuffle, C/U = 0.25", mine / his, 1.0)


def _same_samples(ours: list[Epoch], theirs: list[Epoch]) -> None:
    if [run.ids for run in ours] != [run.ids for run in theirs]:
        raise RuntimeError("the two libraries did not read the same samples in the same order")


def mounted_peer(stage: Stage) -> None:
    """The unmodified peer reading through a mount that was given the order, beside our own reader."""
    stage.link.shape(GIGABIT, 0.01)
    for name, bar in (("s16", 1.35), ("s200", 1.1)):
        data = stage.data(name)
        limit = steady_limit(data, 0.1)
        with stage.disk(limit) as disk, stage.contestant() as ours:
            ours.open(**stage.source(data, disk, limit, **SEED))
            mine = ours.epoch()
        order = "shuffle=true,algo=py1e,seed=9176,batch_size=32"
        with stage.disk(limit) as disk, tempfile.TemporaryDirectory(prefix="mdsfs-bench-") as mountpoint:
            cache = ["--cache-dir", str(disk.folder / "cache"), "--cache-limit", str(limit)]
            command = [*MDSFS, "mount", stage.server.url(data.name), mountpoint, *cache, "--no-sign-request"]
            environment = stage.server.environment
            subprocess.run([*command, "--order", order], check=True, env=environment, cwd=ROOT)
            try:
                with stage.contestant(peer=True) as peer:
                    peer.open(local=mountpoint, shuffle=True, **SEED)
                    theirs = peer.epoch()
            finally:
                subprocess.run([*MDSFS, "umount", mountpoint, "--wait", "10"], check=False, cwd=ROOT)
        _same_samples([mine], [theirs])
        text = f"bytes of the peer on a mount with --order / our reader's, {data.recipe.size // KIB} KiB samples"
        stage.row("", text, theirs.sent.bytes / mine.sent.bytes, bar)


def planned(stage: Stage) -> None:
    """The plan function alone, for sizes that do not fit here: 10⁸ samples in 10⁵ shards on 64 nodes."""
    size = "shards=100000,samples_per_shard=1000,sample=64kb"
    common = ["--synthetic", size, "--bandwidth", "1250mb", "--latency", "0.03", "--nodes", "64", "--ranks-per-node"]
    common += ["8", "--workers", "8", "--batch-size", "32", "--epochs", "2", "--shuffle", "--json"]
    for name, more in (
        ("default shuffle, cache of 5 %", ["--cache-limit", "5gb"]),
        ("default shuffle, cache of half", ["--cache-limit", "48gb"]),
    ):
        started = time.perf_counter()
        done = subprocess.run([*MDSFS, "plan", *common, *more], check=True, capture_output=True, cwd=ROOT)
        seconds = time.perf_counter() - started
        found = json.loads(done.stdout)
        last = found["epochs"][-1]
        text = f"planned, 10⁸ samples, 10⁵ shards, 64 nodes, {name}"
        stage.row("F1", f"{text}: bytes of a steady epoch / (U - C)", last["bytes"] / max(last["least"], 1), 1.05)
        stage.row("", f"{text}: seconds", seconds, 120)


FIGURES: dict[str, Figure] = {
    "F1": steady,
    "F2": steady,
    "F3": delivered,
    "F4": all_fits,
    "F5": shared,
    "F6": first_batch,
    "F7": first_batch,
    "F8": stalls,
    "F9": link_use,
    "F11": tight,
    "prefetched": prefetched,
    "resume": resume,
    "peer": beside_peer,
    "mounted-peer": mounted_peer,
    "plan": planned,
}
