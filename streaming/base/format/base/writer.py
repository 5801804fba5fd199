"""What writers have in common; MDS is the only format whose shards are one file."""

from __future__ import annotations

from streaming.writer import MDSWriter as JointWriter
from streaming.writer import Writer
from streaming.writer import _LineWriter as SplitWriter

__all__ = [
    "JointWriter",
    "SplitWriter",
    "Writer",
]
