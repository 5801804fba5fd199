"""`StreamingDataset`: samples of one or several streams, in an order that every rank and worker agrees on.

The order is `streaming.order`'s, the bytes are the streams'. This class puts the two together, says where an epoch
begins, and has what comes next fetched.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from streaming.array import Array
from streaming.board import Board
from streaming.compatibility.arguments import number_abbrev_to_int
from streaming.compatibility.spellings import DATASET, accept_renamed
from streaming.engine.hint import HintWorld
from streaming.first import bring
from streaming.hinting import Begun, Hints, Lane, name_of_run
from streaming.mixing import Mix, SaysOfMix
from streaming.order.epoch import epoch_length, rank_order
from streaming.order.spec import OrderSpec, StreamSpec
from streaming.order.world import World
from streaming.publishing import PublishedOrder, checked_ids
from streaming.registry import construct_from_registry
from streaming.sizes import parse_size
from streaming.stream import Stream, streams_registry
from streaming.torch_door import SeenByTorch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future

    from numpy.typing import NDArray

    from streaming.resident import PageWatch

__all__ = ["StreamingDataset"]


class StreamingDataset(Array, SaysOfMix, SeenByTorch):
    """A dataset to iterate, shuffled or not, from any number of ranks and workers; samples can be indexed too.

    Args:
        streams: The streams; or give `remote` and `local` of the only one.
        remote, local, split, download_retry, download_timeout, validate_hash, keep_zip: See `Stream`; defaults of
            `streams` otherwise.
        epoch_size: Samples in an epoch (`100_000` or `"100k"`), where streams are weighted by proportion or not at all.
        predownload: How many samples ahead of a worker their shards are fetched; by default 8 batches.
        cache_limit: Bytes (`"10gb"`) that the cache of remote streams takes at most; local data is never removed.
        sampling_method, sampling_granularity: How an epoch picks parts of streams: `balanced` or `fixed`.
        partition_algo, num_canonical_nodes, shuffle, shuffle_algo, shuffle_seed, shuffle_block_size, batching_method:
            The order; see the guide.
        batch_size: Samples per batch and device, as given to the DataLoader. A StreamingDataLoader gives its own where
            there is none; else the order is dealt sample by sample.
        allow_unsafe_types: Decode columns of type `pkl`, which can run any code.
        replication: So many consecutive ranks see the same samples.
        stream_name, stream_config: Where `streams` are not given: the name of the stream's class in `streams_registry`,
            and its keyword arguments beside the ones above.
        zero_copy: See `LocalDataset`.
        rank, world_size, local_world_size: This process among others; by default from RANK, WORLD_SIZE and
            LOCAL_WORLD_SIZE, or a process group that is initialized by the time of the first iteration.

    Raises:
        ValueError: arguments that don't fit each other, or the data.
    """

    def __init__(
        self,
        *,
        streams: Sequence[Stream] | None = None,
        remote: str | None = None,
        local: str | None = None,
        split: str | None = None,
        download_retry: int = 2,
        download_timeout: float = 60.0,
        validate_hash: str | None = None,
        keep_zip: bool = False,
        epoch_size: int | str | None = None,
        predownload: int | None = None,
        cache_limit: int | str | None = None,
        sampling_method: str = "balanced",
        sampling_granularity: int = 1,
        partition_algo: str = "relaxed",
        num_canonical_nodes: int | None = None,
        batch_size: int | None = None,
        shuffle: bool = False,
        shuffle_algo: str = "py1e",
        shuffle_seed: int = 9176,
        shuffle_block_size: int | None = None,
        batching_method: str = "random",
        allow_unsafe_types: bool = False,
        replication: int | None = None,
        stream_name: str = "stream",
        stream_config: dict[str, Any] | None = None,
        zero_copy: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
        local_world_size: int | None = None,
        **renamed: Any,
    ) -> None:
        epoch_size = accept_renamed("StreamingDataset", DATASET, renamed, {"epoch_size": epoch_size})["epoch_size"]
        if bool(streams) == bool(remote or local):
            raise ValueError("You must provide either `streams` or `remote`/`local`, but not both.")
        self.predownload = predownload
        self.cache_limit = None if cache_limit is None else parse_size(_whole(cache_limit))
        self.sampling_method = sampling_method
        self.sampling_granularity = sampling_granularity
        self.partition_algo = partition_algo
        self.num_canonical_nodes = num_canonical_nodes
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.shuffle_algo = shuffle_algo
        self.shuffle_seed = shuffle_seed
        self.shuffle_block_size = shuffle_block_size
        self.batching_method = batching_method
        self.allow_unsafe_types = allow_unsafe_types
        self.replication = replication
        self.stream_name = stream_name
        self.zero_copy = zero_copy
        self.initial_physical_nodes: int | None = None
        self.epoch_seed_change = shuffle and sampling_method == "balanced"
        self._block_size_given = shuffle_block_size is not None
        if (rank is None) != (world_size is None):
            raise ValueError("`rank` and `world_size` go together: give both or none")
        self._rank_given = (rank, world_size, local_world_size)
        self._check()
        defaults = {
            "remote": remote,
            "local": local,
            "split": split,
            "download_retry": download_retry,
            "download_timeout": download_timeout,
            "validate_hash": validate_hash,
            "keep_zip": keep_zip,
        }
        if not streams:
            streams = [_registered(stream_name, {**(stream_config or {}), **defaults})]
        for stream in streams:
            stream.apply_default(defaults)
        self._name = name_of_run()
        self._published: PublishedOrder | None = None
        self._orders_published = 0
        self.streams = list(streams)
        self.num_streams = len(self.streams)
        _check_folders(self.streams)
        self._open()
        size = None if epoch_size is None else number_abbrev_to_int(epoch_size)
        if size is not None and size < 0:
            raise ValueError(f"Epoch size cannot be negative. Received {size}.")
        self.epoch_size = Stream.apply_weights(self.streams, self.samples_per_stream, size, shuffle_seed)
        self.length = ceil(self.epoch_size / self._world().num_ranks)
        self._board = Board()

    def _check(self) -> None:
        if self.sampling_method not in ("balanced", "fixed"):
            raise ValueError(f"Invalid sampling method: {self.sampling_method}. Must be one of `balanced` or `fixed`.")
        if self.sampling_granularity <= 0:
            raise ValueError(
                f"`sampling_granularity` must be a positive integer, but got: {self.sampling_granularity}."
            )
        if self.batching_method not in ("random", "stratified", "per_stream", "device_per_stream"):
            raise ValueError(
                f"Invalid batching method: {self.batching_method}. "
                "Must be one of `random`, `stratified`, `per_stream`, or `device_per_stream`."
            )
        if self.shuffle_seed < 0:
            raise ValueError(f"`shuffle_seed` must be a non-negative integer, but got: {self.shuffle_seed}.")
        if self.predownload is None:
            self.predownload = 8 * self.batch_size if self.batch_size else 64
        elif self.batch_size is not None and self.predownload < self.batch_size:
            warnings.warn(
                f"predownload < batch_size ({self.predownload} < {self.batch_size}). This may result in slower batch "
                "time. Recommendation is to set predownload to at-least batch_size.",
                stacklevel=3,
            )

    # ---- the data ----------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        self._mix = Mix(
            self.streams, cache_limit=self.cache_limit, views=self.zero_copy, allow_unsafe_types=self.allow_unsafe_types
        )
        self._read = self._mix.reader()
        self._hints = Hints(self._name, self._mix.parts)
        if self._published is not None:
            self._published.attach(self._mix.parts)
            self._read = self._published.tracked(self._read)
        self.num_samples = self._mix.num_samples
        self._hooked = type(self).get_item is not StreamingDataset.get_item
        self._plain = not self._hooked and type(self).__getitem__ is StreamingDataset.__getitem__

    def __getstate__(self) -> dict[str, Any]:
        # a spawned worker has no process group to ask
        state = {name: value for name, value in self.__dict__.items() if name not in ("_mix", "_read", "_hints")}
        world = self._place()
        return state | {"_rank_given": (world.rank, world.num_ranks, world.ranks_per_node)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    @property
    def size(self) -> int:
        """Samples in all streams, each counted once."""
        return self.num_samples

    def __len__(self) -> int:
        """Samples of an epoch on this rank."""
        return epoch_length(self._spec(), self._world())

    def get_item(self, sample_id: int, retry: int = 7) -> Any:
        """One sample by its id, 0 ≤ id < size. The hook to override for a transform."""
        return self._read(sample_id)

    def __getitem__(self, at: Any) -> Any:
        if type(at) is int and 0 <= at < self.num_samples:
            return self.get_item(at) if self._hooked else self._read(at)
        return super().__getitem__(at)

    @property
    def is_plain(self) -> bool:
        """Whether samples are given as they are stored: no subclass has changed how one is read."""
        return self._plain and type(self).__iter__ is StreamingDataset.__iter__

    @property
    def read(self) -> Callable[[int], dict[str, Any]]:
        """The function from id to sample, beside every override."""
        return self._read

    @property
    def num_ranks(self) -> int:
        """Ranks that see different samples."""
        return self._world().num_ranks

    def publish_order(self, ids: Any, batch_size: int | None = None) -> PublishedOrder:
        """Say in which order samples will be read by index, by a sampler or by `load_batch`, so that they are there.

        Args:
            ids: Any sequence of sample ids, 0 ≤ id < size, as they will be read.
            batch_size: So many are read together; by default the dataset's.

        Returns:
            What follows the reads of this process and of workers that are made from it after this. It ends with its
            `close`, at the end of its with block, or with the next order that is published. Without an engine it does
            nothing.

        Raises:
            IndexError: an id is no sample's.
            ValueError: no ids, or too many.
        """
        found = checked_ids(ids, self.num_samples)
        if self._published is not None:
            self._published.close()
        self._orders_published += 1
        self._published = PublishedOrder(
            self._name, self._mix.parts, found, batch_size or self.batch_size or 1, self._orders_published
        )
        self._read = self._published.tracked(self._mix.reader())
        return self._published

    def finish_epoch(self, batches: int) -> None:
        """Say that all of the epoch's batches are read, so many of each worker."""
        self._hints.finish(batches)

    def tell_position(self, batches: int, size: int, workers: int) -> None:
        """Say that so many batches of `size` samples are read, by this process for all workers of its rank in turn."""
        if self._hints.is_due():
            read = [(batches - worker + workers - 1) // workers for worker in range(workers)]
            own = self.batch_size or 1
            self._hints.position([(worker, count * size // own) for worker, count in enumerate(read)])

    def prefetch(self, ids: Any) -> None:
        """Have the shards of these samples fetched, in the order in which they come up; returns at once."""
        self._mix.prefetch(np.asarray(ids, np.int64))

    def bring(self, ids: NDArray[np.int64]) -> None:
        """Return when the samples with which an epoch begins are in the cache, as far as they can be."""
        if self._hints:
            bring(self._mix, ids)

    def page_watch(self) -> PageWatch:
        """For whoever iterates beside this class; see `streaming.resident`."""
        return self._mix.page_watch()

    def load_batch(
        self, ids: Any, columns: Sequence[str] | None = None, out: dict[str, Any] | None = None, *, views: bool = False
    ) -> dict[str, Any]:
        """Samples column by column. See `streaming.gather.load_batch`."""
        if self._published is not None:
            self._published.follow(np.asarray(ids, np.int64).reshape(-1))
        return self._mix.load_batch(ids, columns, out, views=views)

    def prepare_shard(self, shard_id: int, blocking: bool = True) -> None:
        """Have a shard fetched; blocking: until all of it is in the cache, as far as there is room."""
        if blocking:
            self._mix.bring_shard(shard_id)
        else:
            self._mix.prefetch_shards([shard_id])

    download_shard = prepare_shard  # as it was called before 0.6

    def evict_shard(self, shard_id: int) -> None:
        """Let go of a shard. The cache, which others use too, drops its bytes when it needs the room."""
        self._mix.close_shard(shard_id)

    def evict_coldest_shard(self) -> None:
        """Nothing to do: the cache keeps its limit by itself."""

    def on_exception(self, future: Future[Any]) -> None:
        """Raise what a task of an executor raised, for `future.add_done_callback`. Nothing here runs in such tasks."""
        if (error := future.exception()) is not None:
            raise error

    @property
    def cache_usage(self) -> int:
        """Bytes that the caches of the remote streams take."""
        return self._mix.cache_usage()

    # ---- the order ---------------------------------------------------------------------------------------------------

    def _place(self) -> World:
        """Which rank and worker this is: as given, or as a process group or the environment says by now."""
        rank, ranks, local = self._rank_given
        if rank is None:
            return World.detect()
        per_node = local or int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        return World((ranks or rank + 1) // per_node, per_node, 1, rank).detect_workers()

    def _world(self) -> World:
        """The same, ranks that see the same samples taken as one."""
        world = self._place()
        return world if self.replication is None else world.replicate(self.replication)

    def _settle(self, world: World, state: dict[str, Any] | None) -> None:
        """Fix what the order depends on: as loaded, as given, or as these nodes suggest."""
        if state is not None:
            self.num_canonical_nodes = state["num_canonical_nodes"] or self.num_canonical_nodes
            self.initial_physical_nodes = state["initial_physical_nodes"]
            if state["shuffle_seed"] is not None:
                self.shuffle_seed = state["shuffle_seed"]
        if not self.num_canonical_nodes:
            self.num_canonical_nodes = OrderSpec.default_canonical_nodes(self.shuffle_algo, world.num_nodes)
        if not self._block_size_given:
            self.shuffle_block_size = OrderSpec.default_block_size(self.num_canonical_nodes)

    def _spec(self) -> OrderSpec:
        return OrderSpec(
            streams=tuple(
                StreamSpec(sizes, stream.choose, stream.proportion)
                for sizes, stream in zip(self._mix.shard_sizes, self.streams, strict=True)
            ),
            batch_size=self.batch_size or 1,
            canonical_nodes=self.num_canonical_nodes or 1,
            seed=self.shuffle_seed,
            shuffle=self.shuffle,
            shuffle_algo=self.shuffle_algo,
            block_size=self.shuffle_block_size or 1,
            partition_algo=self.partition_algo,
            batching_method=self.batching_method,
            sampling_method=self.sampling_method,
            sampling_granularity=self.sampling_granularity,
            initial_nodes=self.initial_physical_nodes,
        )

    def begin_epoch(self, workers: int | None = None) -> NDArray[np.int64]:
        """Start the next epoch: ids of what this rank reads, [workers][batches][batch size], -1 for none.

        `workers`: of this rank, where that is not what torch says of this process.
        """
        world = self._world()
        if workers is not None:
            world = World(world.num_nodes, world.ranks_per_node, workers, world.rank * workers)
        epoch, state = self._board.begin()
        self._settle(world, state)
        drop = (state or {}).get("sample_in_epoch") or 0
        spec = self._spec()
        found = self._hints.begin(self._begun(spec, world, epoch, drop, every_worker=workers is not None))
        return rank_order(spec, world, epoch, drop) if found is None else found

    def _begun(self, spec: OrderSpec, world: World, epoch: int, drop: int, *, every_worker: bool) -> Begun:
        """What an engine is told: which ranks are on this host, and which of their lanes are this process's."""
        place = self._place()
        node = place.rank // place.ranks_per_node
        same = self.replication or 1
        first = node * place.ranks_per_node // same
        last = ((node + 1) * place.ranks_per_node - 1) // same
        here = HintWorld(world.num_nodes, world.ranks_per_node, world.workers_per_rank, first, last - first + 1)
        lanes = range(world.workers_per_rank) if every_worker else [world.worker_of_rank]
        return Begun(spec, here, epoch, drop, world.rank - first, lanes)

    def __iter__(self) -> Iterator[Any]:
        """The samples of this rank and worker in the next epoch, or in the rest of the one that was resumed."""
        worker = self._world().worker_of_rank
        lane = Lane(self.begin_epoch()[worker])
        ids, ahead = lane.ids, max(self.predownload or 0, 1)
        step = min(lane.stride, ahead) if self._hints else ahead
        read = self._read if self._plain else self._hook()
        fetched, pages = 0, self._mix.page_watch()
        for at in range(0, len(ids), step):
            pages.have_read(step)
            if not at:
                self.bring(ids[: self.batch_size or 1])
            if at >= fetched:
                self._mix.prefetch(ids[at + ahead : at + 2 * ahead] if at else ids[: 2 * ahead])
                fetched = at + ahead
            if self._hints.is_due():
                self._hints.position([(worker, lane.batch_at(at))])
            for sample_id in ids[at : at + step].tolist():
                yield read(sample_id)
        self._hints.finish(lane.batches)

    def _hook(self) -> Any:
        overridden = type(self).__getitem__ is not StreamingDataset.__getitem__
        return self.__getitem__ if overridden else self.get_item

    def resample_streams(self, epoch: int, stream_id: int | None = None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(sizes of what is shuffled as one, sample id of each drawn position) of an epoch, or of one stream in it."""
        draw = self._spec().draw(epoch, stream_id)
        return draw.units, draw.lookup(np.arange(draw.size, dtype=np.int64))

    # ---- the state ---------------------------------------------------------------------------------------------------

    @property
    def next_epoch(self) -> int:
        """The epoch that iterating starts next."""
        return self._board.next_epoch

    @next_epoch.setter
    def next_epoch(self, epoch: int) -> None:
        self._board.next_epoch = epoch

    def state_dict(self, num_samples: int, from_beginning: bool) -> dict[str, Any]:
        """Where the run is: JSON-safe, the same on every rank.

        Args:
            num_samples: Samples that all ranks together have seen in this epoch.
            from_beginning: Whether that is since the epoch's start, not since it was resumed.
        """
        world = self._world()
        epoch = self.next_epoch - 1
        state = self._board.loaded(epoch)
        if state is not None and (state["epoch"] or 0) > epoch:  # loaded, and nothing iterated since
            epoch, state = int(state["epoch"] or 0), self._board.loaded(int(state["epoch"] or 0))
        self._settle(world, state)
        offset = 0 if from_beginning or state is None else int(state["sample_in_epoch"] or 0)
        return {
            "epoch": epoch,
            "sample_in_epoch": offset + num_samples,
            "num_canonical_nodes": self.num_canonical_nodes,
            "shuffle_seed": self.shuffle_seed,
            "initial_physical_nodes": self.initial_physical_nodes or world.num_nodes,
        }

    def load_state_dict(self, obj: dict[str, Any]) -> None:
        """Go on from a `state_dict` at the next iteration, in workers that run already too."""
        self._board.load(obj)


def _registered(name: str, arguments: dict[str, Any]) -> Stream:
    """A stream of the class that is registered under a name."""
    stream: Stream = construct_from_registry(name, streams_registry, partial_function=False, kwargs=arguments)
    return stream


def _whole(size: int | str) -> int | str:
    return size if isinstance(size, str) else int(size)


def _check_folders(streams: Sequence[Stream]) -> None:
    """Each stream has a local folder of its own."""
    folders = [os.path.realpath(os.path.join(stream.local, stream.split or "")) for stream in streams]
    again = [folder for folder, count in Counter(folders).items() if count > 1]
    if again:
        raise ValueError(f"Reused local directory: {again}. Provide a different one.")
