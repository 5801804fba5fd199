"""What a repacked dataset is to be like: its compression, its frames, its hashes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mdsfs.errors import UsageError
from streaming.mds.compression import is_compression, split_compression
from streaming.mds.hashing import normalize_hashes
from streaming.mds.seekable import DEFAULT_FRAME, frame_size

if TYPE_CHECKING:
    from streaming.mds.shards import ShardInfo

__all__ = ["Target"]


@dataclass(frozen=True, slots=True)
class Target:
    """`frame` is the raw bytes of a frame, None a frame a sample; `hashes` None keeps those of each shard."""

    compression: str | None = "zstd"
    frame: int | None = DEFAULT_FRAME
    hashes: tuple[str, ...] | None = None

    @classmethod
    def parse(cls, compression: str, frame: str | None, hashes: str | None) -> Target:
        """From options as people write them; raises UsageError for what can't be."""
        kept = None if compression == "none" else compression
        if kept is not None and not (is_compression(kept) and split_compression(kept)[0] == "zstd"):
            raise UsageError(f"--compression: expected zstd, zstd:1 to zstd:22 or none, got {compression!r}")
        if kept is None and frame is not None:
            raise UsageError("--frame is for zstd: uncompressed shards can be read by range as they are")
        try:
            size = frame_size(DEFAULT_FRAME if frame is None else frame)
            names = None if hashes is None else normalize_hashes(hashes)
        except ValueError as error:
            raise UsageError(str(error)) from None
        return cls(kept, size, names)

    def to_json(self) -> dict[str, Any]:
        """As the job in the destination records it."""
        frame = ("sample" if self.frame is None else self.frame) if self.compression else None
        return {"compression": self.compression, "frame": frame, "hashes": self.hashes and list(self.hashes)}

    def hashes_of(self, shard: ShardInfo) -> tuple[str, ...]:
        """The hashes that the repacked shard will have."""
        return shard.hashes if self.hashes is None else self.hashes
