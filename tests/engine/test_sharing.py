"""Readers beside a mount: what is open is shared, not found again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streaming.remote import RemoteOptions
from tests.mount.host import write_dataset

if TYPE_CHECKING:
    from pathlib import Path

    from tests.engine.conftest import Start


def test_a_reader_of_a_mounted_folders_dataset_needs_no_indexing(start: Start, tmp_path: Path) -> None:
    """The dataset in a folder that is open is opened by its own URL from memory: its index may even be gone by then."""
    write_dataset(tmp_path / "source" / "train", samples=10)
    engine = start(64 << 20)
    identity = RemoteOptions().identity(str(tmp_path / "source"))
    with engine.client() as mount, engine.client() as reader:
        shown = mount.open(str(tmp_path / "source"), identity, list=True)
        assert [each.prefix for each in shown.datasets if each.kind == "mds"] == ["train"]
        (tmp_path / "source" / "train" / "index.json").unlink()
        opened = reader.open(str(tmp_path / "source" / "train"), identity)
        assert [(each.prefix, each.url) for each in opened.datasets] == [("", str(tmp_path / "source" / "train"))]
