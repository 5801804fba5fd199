"""Run by the interpreter of .peer: writes datasets with mosaicml-streaming, and prints what it reads from ours.

peer_side.py write DIR      every compression and hash of samples.py, a folder each, and the line formats
peer_side.py read DIR…      one JSON line a folder: its samples, values as text
peer_side.py stream DIR…    the same through StreamingDataset
peer_side.py epoch DIR…     one JSON line a folder: the samples of a whole shuffled epoch, in its order
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import samples

from streaming import CSVWriter, JSONWriter, LocalDataset, MDSWriter, StreamingDataset, TSVWriter, XSVWriter
from streaming.base.compression import decompress

LINES = {"json": JSONWriter, "csv": CSVWriter, "tsv": TSVWriter, "xsv": XSVWriter}


def write(root: Path) -> None:
    """One dataset a combination."""
    for compression in samples.COMPRESSIONS:
        for hashes in samples.HASHES:
            out = root / f"mds-{compression}-{len(hashes)}".replace(":", "_")
            with MDSWriter(
                columns=samples.COLUMNS,
                out=str(out),
                compression=compression,
                hashes=hashes,
                size_limit=samples.SIZE_LIMIT,
            ) as writer:
                for number in range(samples.COUNT):
                    writer.write(samples.sample(number))
    for form, kind in LINES.items():
        for compression in (None, "zstd"):
            extra = {"separator": "::"} if form == "xsv" else {}
            out = root / f"{form}-{compression}"
            with kind(
                columns=samples.LINE_COLUMNS,
                out=str(out),
                compression=compression,
                hashes=["sha1"],
                size_limit=300,
                **extra,
            ) as writer:
                for number in range(40):
                    writer.write(samples.line(number))


def read(folder: Path) -> None:
    """Decompresses with the peer's codecs into a copy, since its LocalDataset reads no compressed shards."""
    index = json.loads((folder / "index.json").read_text())
    with tempfile.TemporaryDirectory() as work:
        for shard in index["shards"]:
            for kind in ("data", "meta"):
                if f"raw_{kind}" not in shard:
                    continue
                raw, stored = shard[f"raw_{kind}"], shard[f"zip_{kind}"]
                if stored is None:
                    shutil.copy(folder / raw["basename"], work)
                else:
                    data = decompress(shard["compression"], (folder / stored["basename"]).read_bytes())
                    (Path(work) / raw["basename"]).write_bytes(data)
                    shard[f"zip_{kind}"] = None
            shard["compression"] = None
        (Path(work) / "index.json").write_text(json.dumps(index))
        report(LocalDataset(local=work))


def stream(folder: Path) -> None:
    """Lets the peer do everything itself; it writes the decompressed shards beside the stored ones."""
    report(StreamingDataset(local=str(folder), batch_size=1, allow_unsafe_types=True))


def epoch(folder: Path) -> None:
    """Default arguments, but for what is needed at all: a batch size, and leave to read `pkl`."""
    dataset = StreamingDataset(local=str(folder), shuffle=True, batch_size=1, allow_unsafe_types=True)
    every = [{name: samples.plain(value) for name, value in sample.items()} for sample in dataset]
    print(json.dumps(every), flush=True)


def report(dataset) -> None:  # type: ignore[no-untyped-def]
    """One line of JSON."""
    every = [{name: samples.plain(value) for name, value in dataset[at].items()} for at in range(dataset.size)]
    print(json.dumps(every), flush=True)


if __name__ == "__main__":
    for folder in sys.argv[2:]:
        {"write": write, "read": read, "stream": stream, "epoch": epoch}[sys.argv[1]](Path(folder))
