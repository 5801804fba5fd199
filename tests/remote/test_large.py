"""Many objects, and large ones: pages of listings, uploads in parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from streaming.errors import ThrottledError
from streaming.remote import RemoteOptions, open_remote
from tests.servers import Fault, FaultProxy, RcloneServer

if TYPE_CHECKING:
    from pathlib import Path

    from tests.servers import StorageServer

# more than boto3 sends in one request
LARGE = 65 << 20


@pytest.mark.usefixtures("rclone")  # skips where there is none; its own view of the folder would be an old one
def test_pages_of_a_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing of several pages is complete and sorted, one request each."""
    folder = tmp_path / RcloneServer.bucket / "pages"
    folder.mkdir(parents=True)
    names = [f"shard.{number:05d}.mds" for number in range(2345)]
    for name in names:
        (folder / name).touch()
    with RcloneServer(tmp_path) as server, FaultProxy(server.endpoint) as proxy:
        for name, value in server.variables_for(proxy.endpoint).items():
            monkeypatch.setenv(name, value)
        remote = open_remote("s3://bucket/pages", RemoteOptions.from_environment())
        assert [found.key for found in remote.list()] == names
        assert remote.counters.snapshot()["requests"] == len(proxy.seen()) == 3


def test_page_that_fails(moto: StorageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that is refused for the moment is asked for again; one that stays refused ends the listing by an error."""
    moto.put("listed/x", b"1")
    with FaultProxy(moto.endpoint) as proxy:
        for name, value in moto.variables_for(proxy.endpoint).items():
            monkeypatch.setenv(name, value)
        remote = open_remote("s3://bucket/listed", RemoteOptions.from_environment(attempts=2))
        proxy.add(Fault("status", times=1))
        assert [found.key for found in remote.list()] == ["x"]
        proxy.add(Fault("status"))
        with pytest.raises(ThrottledError, match="SlowDown"):
            list(remote.list())


def test_upload_in_parts(rclone: StorageServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large file arrives whole although a part of it is refused at first, and the progress adds up to its size."""
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(LARGE)
        file.seek(40 << 20)
        file.write(b"in the middle")
    pieces: list[int] = []
    with FaultProxy(rclone.endpoint) as proxy:
        for name, value in rclone.variables_for(proxy.endpoint).items():
            monkeypatch.setenv(name, value)
        patient = RemoteOptions.from_environment(connect_timeout=60.0, read_timeout=120.0, total_timeout=600.0)
        remote = open_remote("s3://bucket/large", patient)
        proxy.add(Fault("status", method="PUT", times=1))
        remote.put("x", path, progress=pieces.append)
        assert len(proxy.seen("large/x", method="PUT")) > 4
        data, info = remote.read("x", start=(40 << 20) - 1, stop=(40 << 20) + 14)
    assert sum(pieces) == LARGE
    assert (data, info.size) == (b"\0in the middle\0", LARGE)
