"""A stream: one dataset folder, local or with a remote behind it, and its weight in a mix."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from streaming.compatibility.spellings import STREAM, accept_renamed
from streaming.errors import IndexFormatError, IndexVersionError, ObjectMissingError
from streaming.order.weights import Weight, weigh
from streaming.registry import TypedRegistry, create_registry
from streaming.sources import open_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from streaming.compatibility.shards import Reader
    from streaming.order.world import World
    from streaming.reader import Folder

__all__ = ["LocalIndexMissingError", "Stream", "streams_registry"]


class LocalIndexMissingError(ObjectMissingError, RuntimeError):
    """There is no index in the local folder, and no remote to get it from."""


class Stream:
    """One source of samples of a `StreamingDataset`.

    Args:
        remote: URL or path of the dataset; None: `local` holds it.
        local: Folder of the dataset, or of the cache for `remote`; by default one in the temporary directory, named
            after `remote`, which every run finds again.
        split: Sub-folder on both sides.
        proportion: Share of the epoch, relative to the other streams'.
        repeat: How often an epoch has each sample; may be a fraction.
        choose: Samples per epoch.
        download_retry: Attempts of a request.
        download_timeout: Seconds that a server may be silent.
        validate_hash: Name of a hash that the index has: serve nothing that was not checked against it.
        keep_zip: Accepted; compressed shards are not kept.

    Raises:
        ValueError: more than one weight, or a negative one.
    """

    proportion: float
    repeat: float
    choose: int

    def __init__(
        self,
        *,
        remote: str | None = None,
        local: str | None = None,
        split: str | None = None,
        proportion: float | None = None,
        repeat: float | None = None,
        choose: int | None = None,
        download_retry: int | None = None,
        download_timeout: float | None = None,
        validate_hash: str | None = None,
        keep_zip: bool | None = None,
        **renamed: Any,
    ) -> None:
        choose = accept_renamed(type(self).__name__, STREAM, renamed, {"choose": choose})["choose"]
        given = [value for value in (proportion, repeat, choose) if value is not None]
        if len(given) > 1:
            raise ValueError(
                "At most one of `proportion`, `repeat`, and `choose` may be specified; the others are derived"
            )
        for name, value in (
            ("proportion", proportion),
            ("repeat", repeat),
            ("choose", choose),
            ("download_retry", download_retry),
        ):
            if value is not None and value < 0:
                raise ValueError(f"`{name}` must be non-negative")
        if download_timeout is not None and download_timeout <= 0:
            raise ValueError("`download_timeout` must be positive")
        self._weight = Weight(proportion, repeat, choose)
        for name, value in (("proportion", proportion), ("repeat", repeat), ("choose", choose)):
            if value is not None:
                setattr(self, name, value)
        self.remote = None if remote is None else os.fspath(remote)
        self.split = split
        self._local = None if local is None else os.fspath(local)
        self.download_retry = download_retry
        self.download_timeout = download_timeout
        self.validate_hash = validate_hash
        self.keep_zip = keep_zip

    @property
    def local(self) -> str:
        """The folder, without the split."""
        if self._local is not None:
            return self._local
        digest = hashlib.blake2s((self.remote or "").encode(), digest_size=16).hexdigest()
        return os.path.join(tempfile.gettempdir(), digest)

    def apply_default(self, default: dict[str, Any]) -> None:
        """Take what was not given from the dataset's arguments."""
        if not (self.remote or self._local or default.get("remote") or default.get("local")):
            raise ValueError("`remote` and/or `local` path must be provided")
        if self.remote is None:
            self.remote = default.get("remote")
        if self._local is None:
            self._local = default.get("local")
        self.split = self.split or default.get("split") or ""
        for name in ("download_retry", "download_timeout", "validate_hash", "keep_zip"):
            if getattr(self, name) is None:
                setattr(self, name, default.get(name))

    # ---- weights -----------------------------------------------------------------------------------------------------

    @classmethod
    def validate_weights(cls, streams: Sequence[Self]) -> tuple[bool, bool]:
        """(whether weights are relative, whether none is given). Raises ValueError for a mix of kinds."""
        relative = streams[0]._weight.proportion is not None
        for number, stream in enumerate(streams):
            if (stream._weight.proportion is not None) != relative:
                raise ValueError(
                    "Relative (`proportion`) and absolute (`repeat`, `choose`, none) stream weights are incompatible "
                    f"with each other (error in stream {number})"
                )
        return relative, all(stream._weight == Weight() for stream in streams)

    @classmethod
    def apply_weights(
        cls, streams: Sequence[Self], samples_per_stream: NDArray[np.int64], choose_per_epoch: int | None, seed: int
    ) -> int:
        """Set every stream's derived proportion, repeat and choose; the result is the epoch's size."""
        relative, unspecified = cls.validate_weights(streams)
        if choose_per_epoch and not relative and not unspecified:
            raise ValueError("Only provide `choose` when weighting streams relatively")
        drawn = weigh([stream._weight for stream in streams], samples_per_stream, choose_per_epoch, seed)
        for number, stream in enumerate(streams):
            stream.proportion = float(drawn.proportion[number])
            stream.repeat = float(drawn.repeat[number])
            stream.choose = int(drawn.choose[number])
        return drawn.epoch_size

    # ---- the data ----------------------------------------------------------------------------------------------------

    @property
    def is_remote(self) -> bool:
        """Whether samples come through a cache: `local` is not where they are stored."""
        return self.remote is not None and _path(self.remote) != os.path.realpath(self.local)

    def open(self, cache_limit: int | None = None) -> Folder:
        """The dataset's files."""
        split = self.split or ""
        if self.is_remote:
            from streaming.cached import open_remote_folder

            assert self.remote is not None
            return open_remote_folder(
                self.remote,
                Path(self.local),
                split,
                cache_limit=cache_limit,
                attempts=self.download_retry,
                read_timeout=self.download_timeout,
                validate_hash=self.validate_hash,
            )
        path = Path(self.local, split)
        try:
            return open_folder(path, validate_hash=self.validate_hash)
        except IndexVersionError:
            raise
        except IndexFormatError as error:
            raise IndexFormatError(f"Index file at {path / 'index.json'} is empty or corrupted. {error}") from error
        except ObjectMissingError as error:
            raise LocalIndexMissingError(
                f"No `remote` provided, but local file {path / 'index.json'} does not exist either"
            ) from error

    def get_shards(self, world: World, allow_unsafe_types: bool) -> list[Reader]:
        """The shards, for programs that read them one by one; `world` does not matter, since nobody is waited for.

        Raises ValueError for columns whose decoding can run code, unless that is allowed.
        """
        from streaming.compatibility.shards import reader_of
        from streaming.reader import Shards

        shards = Shards(self.open(), allow_unsafe_types=allow_unsafe_types)
        shards.check()
        numbers = range(len(shards.tables.shards))
        return [reader_of(shards, number, self.local, self.split) for number in numbers]

    def prepare_shard(self, shard: Reader) -> int:
        """Have one of `get_shards` fetched, as far as there is room; bytes of its files that were not there."""
        return shard.bring()

    def set_up_local(self, shards: Sequence[Reader], cache_usage_per_shard: NDArray[np.int64]) -> None:
        """Fill in how many bytes of each of `get_shards` are there: all of a shard, or 0. Nothing is changed."""
        cache_usage_per_shard[:] = [shard.get_raw_size() if shard.is_here() else 0 for shard in shards]

    def get_index_size(self) -> int:
        """Bytes of index.json in the local folder. Raises FileNotFoundError before the stream was opened."""
        return os.stat(os.path.join(self.local, self.split or "", "index.json")).st_size


def _path(remote: str) -> str | None:
    """The path of a remote that is one."""
    remote = remote.removeprefix("file://")
    return None if "://" in remote else os.path.realpath(remote)


streams_registry: TypedRegistry[type[Stream]] = create_registry(
    "streaming",
    "streams_registry",
    generic_type=type[Stream],
    entry_points=True,
    description="Classes of streams, which StreamingDataset(stream_name=…) names.",
)
streams_registry.register("stream", func=Stream)
