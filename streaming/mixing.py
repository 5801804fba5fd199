"""Several streams as one sequence of samples: which stream and shard an id is in, and reading it there."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from streaming.cached import EngineFolder
from streaming.first import bring_shard
from streaming.gather import load_batch
from streaming.mds.tables import check_ids
from streaming.order.spanner import Spanner
from streaming.reader import Shards, schema_from_json
from streaming.resident import PageWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from streaming.addresses import Located
    from streaming.compatibility.shards import Reader
    from streaming.mds.shards import Schema
    from streaming.stream import Stream

__all__ = ["Mix", "SaysOfMix"]


class _Readers(Sequence["Reader"]):
    """The shards as a sequence of readers, made when looked at: a million objects would be a lot of memory."""

    def __init__(self, mix: Mix) -> None:
        self._mix = mix

    def __len__(self) -> int:
        return self._mix.num_shards

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [self[number] for number in range(*at.indices(len(self)))]
        if not -len(self) <= at < len(self):
            raise IndexError(f"shard {at}: expected less than {len(self)}")
        return self._mix.shard_reader(at % len(self))


class Mix:
    """The open streams of a dataset. Ids, and shard numbers, run through all streams in their order."""

    def __init__(
        self, streams: Sequence[Stream], *, cache_limit: int | None, views: bool, allow_unsafe_types: bool
    ) -> None:
        folders = {stream.local for stream in streams if stream.is_remote}
        limit = None if cache_limit is None else cache_limit // max(len(folders), 1)
        parts: list[Shards] = []
        for stream in streams:
            shards = Shards(stream.open(limit), views=views, allow_unsafe_types=allow_unsafe_types)
            if not shards.samples:
                index = os.path.join(stream.local, stream.split or "", "index.json")
                raise RuntimeError(f"Stream contains no samples: {index}.")
            shards.check()
            parts.append(shards)
        self._join(parts, [(stream.local, stream.split or "") for stream in streams])

    @classmethod
    def over(cls, parts: Sequence[Shards], places: Sequence[tuple[str, str]]) -> Mix:
        """The mix of what is open already, each in its (folder, split)."""
        mix = cls.__new__(cls)
        mix._join(parts, places)
        return mix

    def _join(self, parts: Sequence[Shards], places: Sequence[tuple[str, str]]) -> None:
        self._parts = list(parts)
        self._places = places
        self.shard_sizes = [part.tables.shards["samples"].astype(np.int64) for part in self._parts]
        self.samples_per_stream = np.array([part.samples for part in self._parts], np.int64)
        self.sample_offset_per_stream = np.cumsum(self.samples_per_stream) - self.samples_per_stream
        self.shards_per_stream = np.array([len(sizes) for sizes in self.shard_sizes], np.int64)
        self.shard_offset_per_stream = np.cumsum(self.shards_per_stream) - self.shards_per_stream
        self.num_samples = int(self.samples_per_stream.sum())
        self.num_shards = int(self.shards_per_stream.sum())

    @property
    def parts(self) -> Sequence[Shards]:
        """The shards of each stream."""
        return self._parts

    @cached_property
    def samples_per_shard(self) -> NDArray[np.int64]:
        """int64 (shards,)."""
        return np.concatenate(self.shard_sizes)

    @cached_property
    def sample_offset_per_shard(self) -> NDArray[np.int64]:
        """int64 (shards,): id of each shard's first sample."""
        return np.cumsum(self.samples_per_shard) - self.samples_per_shard

    @cached_property
    def stream_per_shard(self) -> NDArray[np.int64]:
        """int64 (shards,)."""
        return np.repeat(np.arange(len(self._parts)), self.shards_per_stream)

    @cached_property
    def spanner(self) -> Spanner:
        """From sample id to (shard, place in it)."""
        return Spanner(self.samples_per_shard)

    @property
    def shards(self) -> _Readers:
        """The shards of all streams: a sequence of `streaming.base.format.Reader`."""
        return _Readers(self)

    def shard_reader(self, number: int) -> Reader:
        """One of them."""
        from streaming.compatibility.shards import reader_of  # what only programs that look at shards need

        stream = int(self.stream_per_shard[number])
        return reader_of(self._parts[stream], number - int(self.shard_offset_per_stream[stream]), *self._places[stream])

    def reader(self) -> Callable[[int], dict[str, Any]]:
        """The function from id to sample."""
        return self._reader_of(self._parts)

    def _reader_of(self, parts: Sequence[Shards]) -> Callable[[int], dict[str, Any]]:
        readers = [part.reader() for part in parts]
        if len(readers) == 1:
            return readers[0]
        first = self.sample_offset_per_stream.tolist()

        def read(sample_id: int) -> dict[str, Any]:
            number = bisect_right(first, sample_id) - 1
            return readers[number](sample_id - first[number])

        return read

    def locate_shard(self, number: int) -> tuple[Shards, int]:
        """The part that has a shard, and the shard's number there."""
        stream = int(np.searchsorted(self.shard_offset_per_stream, number, side="right")) - 1
        return self._parts[stream], number - int(self.shard_offset_per_stream[stream])

    def split(self, ids: NDArray[np.int64]) -> Iterable[tuple[Shards, NDArray[np.int64], NDArray[np.int64]]]:
        """(part, places in `ids`, ids within the part) of every stream that `ids` touch."""
        if len(self._parts) == 1 and len(ids):
            yield self._parts[0], np.arange(len(ids)), ids
            return
        check_ids(ids, self.num_samples)
        streams = np.searchsorted(self.sample_offset_per_stream, ids, side="right") - 1
        for stream in np.unique(streams).tolist():
            places = np.flatnonzero(streams == stream)
            yield self._parts[stream], places, ids[places] - self.sample_offset_per_stream[stream]

    def prefetch(self, ids: NDArray[np.int64]) -> None:
        """Have the shards of these samples fetched, in the order in which they come up."""
        for part, _, own in self.split(ids):
            if part.folder.fetches and len(own):
                shards = part.tables.find_shards(own)
                found, at = np.unique(shards, return_index=True)
                part.prefetch(found[np.argsort(at)].tolist())

    def prefetch_shards(self, numbers: Iterable[int]) -> None:
        """Have shards fetched."""
        for number in numbers:
            part, own = self.locate_shard(number)
            if part.folder.fetches:
                part.prefetch([own])

    def bring_shard(self, number: int) -> None:
        """Have a shard fetched, and wait for it. Raises what keeps it from being read."""
        part, own = self.locate_shard(number)
        bring_shard(part, own)
        if part.tables.shards["samples"][own]:
            part.sample(own, 0)

    def page_watch(self) -> PageWatch:
        """Keeps what an iteration has mapped within bounds."""
        total = sum(int(part.tables.files["size"].sum()) for part in self._parts)
        return PageWatch(self.num_samples, total, lambda: (each for part in self._parts for each in part.maps()))

    def close_shard(self, number: int) -> None:
        """Let go of a shard's map."""
        part, own = self.locate_shard(number)
        part.close(own)

    def locate(
        self, ids: NDArray[np.int64], *, copied: bool = False
    ) -> Iterator[tuple[Schema, NDArray[np.int64], Located]]:
        """(schema, places in `ids`, where they are in memory) of the samples, by schema; see `Addresses.locate`."""
        for part, places, own in self.split(ids):
            for schema, some in part.by_schema(own):
                yield schema, places[some], part.locate(own[some], copied=copied)

    def schema_of(self, sample_id: int) -> Schema:
        """What a sample is made of."""
        part, _, own = next(iter(self.split(np.array([sample_id]))))
        return next(iter(part.by_schema(own)))[0]

    def load_batch(
        self, ids: Any, columns: Sequence[str] | None = None, out: dict[str, Any] | None = None, *, views: bool = False
    ) -> dict[str, Any]:
        """See `gather.load_batch`."""
        return load_batch(self, ids, columns, out, views=views)

    @cached_property
    def read_stored(self) -> Callable[[int], dict[str, Any]]:
        """The function from id to sample with its values as views: those of varying size as they are stored."""
        return self._reader_of([Shards(part.folder, views=True, stored=True) for part in self._parts])

    def schema(self) -> Schema:
        """What the first shard's samples are made of."""
        return self._parts[0].schema(0)

    @property
    def schemas(self) -> list[Schema]:
        """All that differ."""
        return [schema_from_json(entry) for part in self._parts for entry in part.tables.schemas]

    def cache_usage(self) -> int:
        """Bytes that the engines of these streams keep."""
        engines = {}
        for part in self._parts:
            if isinstance(folder := part.folder, EngineFolder):
                status = folder.status()
                engines[status["engine"]["pid"]] = status
        return sum(int(status["cache"]["resident_bytes"]) for status in engines.values())


def _of_mix(name: str, described: str) -> Any:
    return property(lambda self: getattr(self._mix, name), doc=described)


class SaysOfMix:
    """What a dataset says of its data, which its `_mix` knows.

    Properties rather than `__getattr__`, which would make every attribute of the class two to three times slower.
    """

    _mix: Mix
    num_shards = _of_mix("num_shards", "Shards of all streams.")
    shards = _of_mix("shards", "The shards of all streams.")
    shard_sizes = _of_mix("shard_sizes", "For each stream, int64 (its shards,): samples.")
    samples_per_shard = _of_mix("samples_per_shard", "int64 (shards,).")
    sample_offset_per_shard = _of_mix("sample_offset_per_shard", "int64 (shards,): id of each shard's first sample.")
    stream_per_shard = _of_mix("stream_per_shard", "int64 (shards,).")
    spanner = _of_mix("spanner", "From sample id to (shard, place in it).")
    samples_per_stream = _of_mix("samples_per_stream", "int64 (streams,).")
    sample_offset_per_stream = _of_mix("sample_offset_per_stream", "int64 (streams,): id of each one's first sample.")
    shards_per_stream = _of_mix("shards_per_stream", "int64 (streams,).")
    shard_offset_per_stream = _of_mix("shard_offset_per_stream", "int64 (streams,): number of each one's first shard.")
    schema = _of_mix("schema", "A function: what the first shard's samples are made of.")
    schemas = _of_mix("schemas", "All that differ.")
