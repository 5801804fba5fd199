"""Room on the disk: claims it in the ledger, takes chunks away to make it, and turns fetched blocks into resident ones.

What is decided (what goes, whether it suffices) is decided synchronously, over ledger, policy and residency table
together; what is done (punching holes) happens afterwards in a thread. In between the blocks in question have lost
their bits, their cells are `busy`, and the ledger still counts them: nobody reads them, nobody fetches into them, and
nobody takes their room twice.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

import trio

from mdsfs.metrics.timings import Timings
from streaming.engine.residency import BLOCK

from .ledger import Ledger, chunk_blocks
from .pins import Pins
from .policy import ANYTHING, Arrival, LeastRecentlyUsed
from .victims import Victim, merged, punch_all, tell

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from streaming.engine.residency import Bits

    from .dataset import Dataset, Run
    from .ledger import Chunk, FileKey
    from .policy import Incoming, Policy

__all__ = ["Cache", "Hold"]

Hold = tuple["Chunk", ...]

log = logging.getLogger(__name__)

# Punching costs a trip to a thread: where the cache is large, several chunks share one. What goes before it must was
# kept for nothing: of a cache that holds nine tenths of an epoch, each hundredth that stands empty is a tenth more to
# fetch.
LARGEST_BATCH = 8 << 20
BATCH_SHARE = 512
# ... of as many times what is needed at most: to look for more costs more than it saves.
AT_ONCE = 8
# A file whose holes could not be punched is in use by a reader's view, or by another program; looked at again after
# this long.
PINNED_FOR = 1.0
# Evicted chunks of which a later fill is told in the log as a refetch.
REMEMBERED = 65536


class Cache:
    """The room of one cache directory."""

    def __init__(self, limit: int, timings: Timings | None = None, *, trees: bool = True) -> None:
        """`trees`: as for the ledger."""
        self.timings = timings or Timings()
        self.ledger = Ledger(limit, trees=trees)
        self.pins = Pins()
        self.policy: Policy = LeastRecentlyUsed()
        self.chunk = chunk_blocks(limit)
        self.datasets: dict[int, Dataset] = {}
        self.evictions = 0
        self.evicted_blocks = 0
        self._batch = min(limit // BATCH_SHARE, LARGEST_BATCH) // BLOCK
        self._evicting = 0
        self._evicted = trio.lowlevel.ParkingLot()
        self._gone: dict[Chunk, None] = {}
        self._pinned: dict[FileKey, tuple[float, int]] = {}
        self.on_removed: Callable[[Dataset], None] = lambda _: None
        """Hears of every folder that was removed."""
        self._unheld: dict[Chunk, trio.Event] = {}

    def __repr__(self) -> str:
        return f"Cache({self.ledger}, {self.evictions} evictions)"

    @property
    def pinned_blocks(self) -> int:
        """Blocks that could not be taken away when somebody last tried."""
        now = trio.current_time()
        return sum(blocks for until, blocks in self._pinned.values() if until > now)

    # ---- claims ------------------------------------------------------------------------------------------------------

    def hold(self, dataset: Dataset, file: int, first: int, count: int) -> Hold:
        """Keep these blocks, and what arrives among them, until `unhold` of the answer."""
        cells = dataset.cells(file, first, count)
        self.ledger.hold(cells)
        return cells

    def unhold(self, hold: Hold) -> None:
        """End a hold."""
        free = self.ledger.unhold(hold)
        for cell in free if self._unheld else ():
            if cell in self._unheld:
                self._unheld.pop(cell).set()

    def touch(self, dataset: Dataset, file: int, first: int, count: int) -> None:
        """Blocks were used. Those of a pinned file are no business of the policy: it would offer them for ever."""
        if self.pins.has(dataset.number, file):
            return
        for chunk in dataset.chunks(file, first, count):
            self.policy.touch(chunk)

    def touch_resident(self, dataset: Dataset, file: int, offset: int) -> None:
        """Somebody has read there without asking; says nothing where nothing is resident any more."""
        first = offset // BLOCK
        if self.pins.has(dataset.number, file):
            return
        for chunk in dataset.chunks(file, first, 1):
            if dataset.residency.occupied(file, *dataset.chunk_run(file, chunk[2])):
                self.policy.touch(chunk)

    async def reserve(self, dataset: Dataset, file: int, blocks: int, incoming: Incoming = ANYTHING) -> bool:
        """Claim room for `incoming`, taking away what may go for it; False when not enough may."""
        while self.ledger.shortfall(dataset.number, file, blocks):
            if not await self._make_room(self.ledger.shortfall(dataset.number, file, blocks), incoming):
                return False
        return self.ledger.try_reserve(dataset.number, file, blocks)

    async def reserve_all(self, claims: Iterable[tuple[Dataset, int, int]], incoming: Incoming) -> bool:
        """`reserve` for blocks of several files together: all of it, or nothing."""
        wanted: dict[FileKey, int] = {}
        for dataset, file, blocks in claims:
            key = (dataset.number, file)
            wanted[key] = wanted.get(key, 0) + blocks
        while short := self.ledger.shortfall_of_all(wanted):
            if not await self._make_room(short, incoming):
                return False
        return all(self.ledger.try_reserve(*key, blocks) for key, blocks in wanted.items())

    async def make_free(self, blocks: int) -> bool:
        """Take away what may go until so many blocks are free; False when not enough may."""
        while self.ledger.free < blocks:
            if not await self._make_room(blocks - self.ledger.free):
                return False
        return True

    def commit(self, arrival: Arrival) -> int:
        """Blocks whose data is in the file become resident; returns how many took no room before."""
        fresh, error = self.commit_all([arrival])
        if error is not None:
            raise error
        return fresh[0]

    def commit_all(self, arrivals: Sequence[Arrival]) -> tuple[list[int], OSError | None]:
        """The same for runs of several files; where the disk says no the rest is left out, and that is returned."""
        found: list[int] = []
        refused = None
        for dataset, file, first, count, back, front in arrivals:
            fresh = count - dataset.residency.occupied(file, first, count)
            if dataset.residency.count(file, first, count) < count:
                try:
                    dataset.residency.set_blocks(file, first, count, back=back, front=front)
                except OSError as error:
                    refused = error
                    break
            if fresh:
                self.ledger.commit(dataset.number, file, fresh)
            self.touch(dataset, file, first, count)
            found.append(fresh)
        self.policy.arrived([each[:4] for each in arrivals[: len(found)]])
        return found, refused

    # ---- taking away -------------------------------------------------------------------------------------------------

    async def _make_room(self, short: int, incoming: Incoming = ANYTHING) -> bool:
        """One step towards room: an eviction, or the end of somebody else's. False when there is nothing left to do."""
        if await self._remove_idle_folder():
            return True
        victims = self._choose(short, incoming)
        if victims:
            await self._evict(victims)
            return True
        if self._evicting:
            await self._evicted.park()
            return True
        return False

    def _choose(self, short: int, incoming: Incoming) -> list[Victim]:
        """Victims enough for the shortfall, or none; at most one a file."""
        now, found, blocks = trio.current_time(), [], 0
        enough = max(short, min(self._batch, AT_ONCE * short))
        for victim in self._candidates(incoming):
            pinned = self._pinned.get((victim.dataset.number, victim.file))
            if pinned and pinned[0] > now:
                continue
            found.append(victim)
            blocks += victim.blocks
            if blocks >= enough:
                break
        return merged(found) if blocks >= short else []

    def _candidates(self, incoming: Incoming) -> Iterator[Victim]:
        """What may go, best first: neither held nor on its way out already."""
        for number, file, index, run in self.policy.victims(incoming):
            dataset = self.datasets[number]
            if run is not None:
                if (victim := self._victim(dataset, file, run)) is not None:
                    yield victim
                continue
            indexes = range(-(-dataset.blocks(file) // dataset.grain(file))) if index is None else (index,)
            for each in indexes:
                if index is None and self.policy.is_recent((number, file, each)):
                    continue
                if (victim := self._victim(dataset, file, dataset.chunk_run(file, each))) is not None:
                    yield victim

    def may_go(self, number: int, file: int, run: Run) -> bool:
        """Whether these blocks are neither held, nor pinned, nor on their way out already."""
        dataset = self.datasets[number]
        busy = dataset.work[file].busy if file in dataset.work else {}
        if self.pins.has(number, file):
            return False
        return not any(self.ledger.is_held(cell) or cell in busy for cell in dataset.cells(file, *run))

    def _victim(self, dataset: Dataset, file: int, run: Run) -> Victim | None:
        if not self.may_go(dataset.number, file, run):
            return None
        runs = list(dataset.residency.runs(file, *run, present=True, parts=True))
        return Victim(dataset, file, runs, dataset.cells(file, *run)) if runs else None

    async def evict_file(self, dataset: Dataset, file: int) -> str | None:
        """Take all of a file away because somebody asks for it; None when it has gone, else why all of it stays."""
        if self.pins.has(dataset.number, file):
            return "pinned"
        if file in dataset.work and dataset.work[file].flights:
            return "being fetched"
        victims = []
        for index in range(-(-dataset.blocks(file) // dataset.grain(file))):
            if (victim := self._victim(dataset, file, dataset.chunk_run(file, index))) is not None:
                victims.append(victim)
            elif dataset.residency.occupied(file, *dataset.chunk_run(file, index)):
                return "held by a reader"
        if victims:
            await self._evict(merged(victims))
        return "in use by a reader" if self.ledger.resident_of(dataset.number, file) else None

    def pin(self, dataset: Dataset, files: Collection[int]) -> None:
        """These files stay from now on."""
        self.pins.add(dataset, files)
        for file in files:
            for chunk in dataset.chunks(file, 0, dataset.blocks(file)):
                self.policy.forget(chunk)
            self.policy.forget_file((dataset.number, file))

    def unpin(self, dataset: Dataset, files: Collection[int]) -> None:
        """These may go again; they were all used a moment ago, as far as is known."""
        self.pins.remove(dataset, files)
        for file in files:
            for first, count in dataset.residency.extents(file):
                self.touch(dataset, file, first, count)

    async def _evict(self, victims: list[Victim]) -> None:
        begun = [self._begin(victim) for victim in victims]
        self._gone_from(victims)
        self._evicting += 1
        try:
            # Shielded: what has lost its bits must either go or get them back.
            with trio.CancelScope(shield=True), self.timings.timed("evict_seconds"):
                gone = await trio.to_thread.run_sync(punch_all, victims)
            for victim, bits, done in zip(victims, begun, gone, strict=True):
                self._end(victim, bits, gone=done)
            went = [victim for victim, done in zip(victims, gone, strict=True) if done]
            tell("evicted", (each for victim in went for each in victim.ranges))
        finally:
            self._evicting -= 1
            self._evicted.unpark_all()

    def _begin(self, victim: Victim) -> list[Bits]:
        dataset, file = victim.dataset, victim.file
        dataset.begin_change(file)
        bits = [dataset.residency.clear_blocks(file, *run) for run in victim.runs]
        dataset.working(file).busy.update(dict.fromkeys(victim.cells, trio.Event()))
        return bits

    def _gone_from(self, victims: list[Victim]) -> None:
        self.policy.gone([(victim.dataset, victim.file, *run) for victim in victims for run in victim.runs])
        for victim in victims:
            dataset, file = victim.dataset, victim.file
            for chunk in victim.chunks:
                if not dataset.residency.occupied(file, *dataset.chunk_run(file, chunk[2])):
                    self.policy.forget(chunk)

    def _end(self, victim: Victim, bits: list[Bits], *, gone: bool) -> None:
        dataset, file = victim.dataset, victim.file
        if gone:
            self._pinned.pop((dataset.number, file), None)
            self.ledger.release(dataset.number, file, victim.blocks)
            self.evictions += 1
            self.evicted_blocks += victim.blocks
            self._remember(victim)
        else:
            for (first, count), kept in zip(victim.runs, bits, strict=True):
                dataset.residency.restore(file, first, count, kept)
                self.touch(dataset, file, first, count)
            self.policy.arrived([(dataset, file, *run) for run in victim.runs])
            self._pinned[dataset.number, file] = (trio.current_time() + PINNED_FOR, victim.blocks)
        if not self.ledger.resident_of(dataset.number, file):
            self.policy.forget_file((dataset.number, file))
            dataset.residency.free_pages(file)
        dataset.end_change(file)
        busy = dataset.working(file).busy
        for cell in victim.cells:
            busy.pop(cell).set()
        dataset.rest(file)

    def _remember(self, victim: Victim) -> None:
        self._gone.update(dict.fromkeys(victim.chunks))
        while len(self._gone) > REMEMBERED:
            del self._gone[next(iter(self._gone))]

    def was_evicted(self, dataset: Dataset, file: int, first: int, count: int) -> bool:
        """Whether something of these blocks was evicted not long ago; told once."""
        gone = [chunk for chunk in dataset.chunks(file, first, count) if chunk in self._gone]
        for chunk in gone:
            del self._gone[chunk]
        return bool(gone)

    # ---- wrong or unfinished bytes -----------------------------------------------------------------------------------

    def withdraw(self, dataset: Dataset, file: int, first: int, count: int) -> int:
        """Resident blocks turn out to be wrong: they lose their bits and become reservations of their filler again.

        Nothing is punched: those who hold them go on copying what was there, until the filler says `scrub`.
        """
        present = dataset.residency.occupied(file, first, count)
        dataset.begin_change(file)
        dataset.residency.clear_blocks(file, first, count)
        self.policy.gone([(dataset, file, first, count)])
        dataset.end_change(file)
        dataset.rest(file)
        self.ledger.commit(dataset.number, file, -present)
        return present

    async def wait_unheld(self, cells: Hold) -> None:
        """Return when each of the cells has been seen without a hold."""
        for cell in cells:
            if self.ledger.is_held(cell):
                await self._unheld.setdefault(cell, trio.Event()).wait()

    async def scrub(self, dataset: Dataset, file: int, runs: list[Run], reserved: int) -> None:
        """Punch these vacant blocks, into which something may have been written, and end a reservation.

        The caller's fill is still on the books, so that nobody else fetches into them meanwhile. No pin is asked about:
        what has no bit is in nobody's view.
        """
        with trio.CancelScope(shield=True):
            try:
                await trio.to_thread.run_sync(_scrub_all, dataset, file, runs)
            except OSError as error:
                # Whatever was written stays on the disk, so its room stays claimed.
                log.error("cannot punch dataset=%d file=%d: %s", dataset.number, file, error)
                return
        self.ledger.cancel(dataset.number, file, reserved)

    async def drop(self, dataset: Dataset, file: int) -> None:
        """All that is in a file goes: it is not what was written into it. Nobody here has been told of it yet.

        A reader of an earlier engine may have a pin on it; what it sees is wrong already.
        """
        with self._taking_away(dataset, file):
            dataset.residency.clear_file(file)
            self.policy.gone([(dataset, file, 0, dataset.blocks(file))])
            with trio.CancelScope(shield=True):
                if not await trio.to_thread.run_sync(dataset.folder.drop_file, file):
                    await trio.to_thread.run_sync(_scrub_all, dataset, file, [(0, dataset.blocks(file))])
            self.ledger.release(dataset.number, file, self.ledger.resident_of(dataset.number, file))

    async def repair(self, dataset: Dataset, file: int) -> None:
        """A fill was writing into a file, or an eviction taking from it, when its engine was killed.

        What an eviction had not taken yet goes, if the file is otherwise as it was; else all of the file goes. Unless
        a reader has a pin on it: then what has no bit goes, and the rest, which was whole before it had one, stays.
        """
        with self._taking_away(dataset, file), trio.CancelScope(shield=True):
            if dataset.folder.check_file(file) == "ok":
                absent = dataset.vacant(file, 0, dataset.blocks(file))
                runs = [(first * BLOCK, count * BLOCK) for first, count in absent]
                if await trio.to_thread.run_sync(dataset.folder.punch_runs, file, runs):
                    return
            if await trio.to_thread.run_sync(dataset.folder.drop_file, file):
                dataset.residency.clear_file(file)
                self.policy.gone([(dataset, file, 0, dataset.blocks(file))])
                self.ledger.release(dataset.number, file, self.ledger.resident_of(dataset.number, file))
            else:
                runs = dataset.vacant(file, 0, dataset.blocks(file))
                await trio.to_thread.run_sync(_scrub_all, dataset, file, runs)

    @contextlib.contextmanager
    def _taking_away(self, dataset: Dataset, file: int) -> Iterator[None]:
        dataset.begin_change(file)
        try:
            yield
        finally:
            if not self.ledger.resident_of(dataset.number, file):
                self.policy.forget_file((dataset.number, file))
            dataset.end_change(file)
            dataset.rest(file)

    # ---- folders -----------------------------------------------------------------------------------------------------

    def add(self, dataset: Dataset, fixed_blocks: int) -> None:
        """Take in a dataset's folder with what is resident in it; `free` may be negative afterwards."""
        number = dataset.number
        self.datasets[number] = dataset
        self.ledger.set_fixed(_fixed_name(number), fixed_blocks)
        self.ledger.add_dataset(number, dataset.residency.resident_blocks(), dataset.bitmap_pages())
        self.pins.load(dataset)
        kept = self.pins.of(number)
        self.policy.adopt(number, (file for file in self.ledger.files_with_blocks(number) if file not in kept))

    def fixed_of(self, dataset: Dataset) -> int:
        """What the folder costs beside its files."""
        return self.ledger.fixed_of(_fixed_name(dataset.number))

    async def _remove_idle_folder(self) -> bool:
        """Remove one folder that nobody uses and of which no file is left; True if there was one."""
        for dataset in self.datasets.values():
            if not dataset.kept and self.is_idle(dataset):
                break
        else:
            return False
        await self.remove(dataset)
        return True

    def is_idle(self, dataset: Dataset) -> bool:
        """Whether nobody uses a folder, and nothing is in it that is there, or must be."""
        number = dataset.number
        in_use = dataset.users or dataset.work or dataset.removed or self.pins.of(number)
        return not in_use and not self.ledger.dataset_resident(number)

    async def remove(self, dataset: Dataset) -> None:
        """Remove an idle folder, unless a reader of an earlier engine has a pin in it: then it is `kept`."""
        del self.datasets[dataset.number]
        dataset.removed = trio.Event()
        try:
            with trio.CancelScope(shield=True):
                dataset.kept = not await trio.to_thread.run_sync(dataset.folder.remove)
        finally:
            if dataset.kept:
                self.datasets[dataset.number] = dataset
            else:
                self._forget(dataset)
            event, dataset.removed = dataset.removed, None
            event.set()

    def _forget(self, dataset: Dataset) -> None:
        log.info("removed dataset=%d url=%s", dataset.number, dataset.url)
        dataset.residency.close()
        self.pins.forget(dataset.number)
        self.ledger.remove_dataset(dataset.number)
        self.ledger.set_fixed(_fixed_name(dataset.number), 0)
        self.on_removed(dataset)


def _fixed_name(number: int) -> str:
    return f"dataset {number}"


def _scrub_all(dataset: Dataset, file: int, runs: list[Run]) -> None:
    for first, count in runs:
        dataset.folder.scrub(file, first * BLOCK, count * BLOCK)
