"""The helpers side by side with mosaicml-streaming's own."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from streaming import JSONWriter, MDSWriter, StreamingDataLoader, StreamingDataset
from streaming.base.compression import get_compressions
from streaming.base.format import get_index_basename
from streaming.base.format.mds.encodings import get_mds_encodings
from streaming.base.hashing import get_hashes
from streaming.base.util import bytes_to_int, get_list_arg, merge_index, number_abbrev_to_int
from tests.peer.alone import alone

PYTHON = Path(__file__).resolve().parents[2] / ".peer" / "bin" / "python"

pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(not PYTHON.exists(), reason="mosaicml-streaming is not installed: run scripts/peer"),
]

OURS: dict[str, Any] = {
    each.__name__: each
    for each in (
        bytes_to_int,
        get_compressions,
        get_hashes,
        get_index_basename,
        get_list_arg,
        get_mds_encodings,
        number_abbrev_to_int,
    )
}
TEXTS = [
    "",
    " ",
    "b",
    "kb",
    "k",
    "1",
    " 7 ",
    "1b",
    "1.5b",
    "1.5kb",
    "2 GB",
    "64mb",
    "64m",
    "64MiB",
    "1e3kb",
    "-1",
    "-1kb",
]
TEXTS += ["nan", "1 b", "0yb", "1.5M", "3t", "2b", "1,5k", "a,b", "1_0", "1_0kb", 5, 2.9]


def peers(calls: list[tuple[str, list[Any]]]) -> list[Any]:
    """What mosaicml-streaming answers."""
    command = [PYTHON, "-P", "-W", "ignore", Path(__file__).with_name("peer_side.py"), json.dumps(calls)]
    with alone(), tempfile.TemporaryDirectory() as scratch:  # it leaves its lock files there
        environment = {**os.environ, "TMPDIR": scratch}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return list(json.loads(done.stdout))


def ours(name: str, arguments: list[Any]) -> Any:
    """What we answer."""
    try:
        found = OURS[name](*arguments)
    except ValueError as error:
        return ["ValueError", str(error)]
    return sorted(found) if isinstance(found, set) else found


def test_helpers_answer_alike() -> None:
    """Texts of every kind give the same numbers, or the same error in the same words; the same names are known."""
    calls: list[tuple[str, list[Any]]] = [
        (name, [text]) for name in ("bytes_to_int", "number_abbrev_to_int") for text in TEXTS
    ]
    calls += [("get_list_arg", [text]) for text in TEXTS if isinstance(text, str)]
    calls += [(name, []) for name in ("get_compressions", "get_hashes", "get_index_basename", "get_mds_encodings")]
    for call, theirs in zip(calls, peers(calls), strict=True):
        assert ours(*call) == theirs, call


def test_merged_indexes_are_the_peers_byte_for_byte(tmp_path: Path) -> None:
    """Partitions one folder deep, from a list and from their root, with hashes, compression and line formats."""
    roots = [tmp_path / name for name in ("ours", "peers")]
    for root in roots:
        for part, kind in (("p0", MDSWriter), ("p1", MDSWriter), ("p1-b", JSONWriter)):
            zipped = None if part == "p0" else "zstd"
            writer: Any = kind(columns={"n": "int"}, out=root / part, compression=zipped, hashes="sha1", size_limit=300)
            with writer:
                for number in range(40):
                    writer.write({"n": number})
    listed = [[str(root / part / "index.json") for part in ("p1", "p0", "p1")] for root in roots]
    merge_index(listed[0], str(roots[0]))
    assert peers([("merge_index", [listed[1], str(roots[1])])]) == [None]
    first = (roots[0] / "index.json").read_bytes()
    assert first == (roots[1] / "index.json").read_bytes()
    (roots[1] / "index.json").unlink()  # the peer replaces none
    merge_index(str(roots[0]))
    assert peers([("merge_index", [str(roots[1])])]) == [None]
    assert (roots[0] / "index.json").read_bytes() == (roots[1] / "index.json").read_bytes() != first


def epoch(folder: Path, state: dict[str, Any] | None, batches: int | None) -> tuple[list[int], Any]:
    """What peer_side.epoch does, with our classes."""
    loader = StreamingDataLoader(StreamingDataset(local=str(folder), shuffle=True, batch_size=4), batch_size=4)
    if state is not None:
        loader.load_state_dict(state)
    seen: list[int] = []
    for number, batch in enumerate(loader, start=1):
        seen += batch["n"].tolist()
        if number == batches:
            break
    return seen, loader.state_dict()


def test_checkpoints_go_both_ways(tmp_path: Path) -> None:
    """A run that one library began and the other resumes gives the same samples, and so the same states."""
    with MDSWriter(columns={"n": "int"}, out=tmp_path, size_limit=400) as writer:
        for number in range(200):
            writer.write({"n": number})
    begun, state = epoch(tmp_path, None, 12)
    rest, _ = epoch(tmp_path, state, None)
    assert sorted(begun + rest) == list(range(200))
    theirs_begun, theirs_rest = peers([("epoch", [str(tmp_path), None, 12]), ("epoch", [str(tmp_path), state, None])])
    assert theirs_begun == [begun, state]
    assert theirs_rest[0] == rest
    assert epoch(tmp_path, theirs_begun[1], None)[0] == rest
