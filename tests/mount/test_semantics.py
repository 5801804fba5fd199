"""SEMANTICS.md on a real mount over a fake engine: the test of each line has its name."""

from __future__ import annotations

import contextlib
import errno
import json
import mmap
import os
import random
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mdsfs.mount import mountpoint as mountpoints
from streaming.engine.address import socket_path
from streaming.errors import CredentialsRefusedError, ObjectChangedError, ObjectMissingError, StreamingError

from .fake_engine import CORRUPT, FakeEngine
from .harness import Mounted, mounted, why_not_mountable
from .host import is_read, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [
    pytest.mark.mounted,
    pytest.mark.skipif(why_not_mountable() is not None, reason=str(why_not_mountable())),
]

MIB = 1 << 20
CONTENTS = {
    "a.bin": random.Random(1).randbytes(2 * MIB + 100),
    "b.bin": random.Random(2).randbytes(5000),
    "c.bin": random.Random(3).randbytes(300_000),
    "dir/d.bin": random.Random(4).randbytes(70_000),
    "empty": b"",
}
A, B, C = 0, 1, 2


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[FakeEngine]:
    with FakeEngine(tmp_path / "cache", CONTENTS) as engine:
        yield engine


@pytest.fixture
def mount(engine: FakeEngine, tmp_path: Path) -> Iterator[Mounted]:
    with mounted(engine.cache_dir, tmp_path) as mount:
        yield mount


def error_of(action: Callable[[], object]) -> int | None:
    """The errno that an action fails with."""
    with pytest.raises(OSError) as raised:  # noqa: PT011
        action()
    return raised.value.errno


def test_every_line_has_a_test() -> None:
    """Each name in the document's tables is a test in this package, so that no sentence stands unchecked."""
    document = (Path(mountpoints.__file__).parent / "SEMANTICS.md").read_text()
    names = re.findall(r"^\| `(\w+)` \|", document, re.MULTILINE)
    tests = "".join(file.read_text() for file in Path(__file__).parent.glob("test_*.py"))
    assert len(names) > 20
    assert [name for name in names if f"def test_{name}(" not in tests] == []


# ---- names and attributes ------------------------------------------------------------------------------------------


def test_lookup_needs_no_data(mount: Mounted, engine: FakeEngine) -> None:
    """Walking the tree and looking at everything asks the engine for nothing."""

    def asked() -> list[str]:
        """Without the mount's own report of what it does, which comes when a second has passed."""
        return [request for request in engine.requests if request != "report"]

    before = asked()
    found = {path.relative_to(mount.path).as_posix(): path.stat().st_size for path in mount.path.rglob("*.bin")}
    assert found == {name: len(data) for name, data in CONTENTS.items() if name.endswith(".bin")}
    assert asked() == before


def test_absent_name(mount: Mounted) -> None:
    """A missing name is ENOENT, again and again, in every directory."""
    for name in ("nothing", "dir/nothing", ".mdsfs/nothing", "nothing"):
        assert error_of((mount.path / name).stat) == errno.ENOENT
    assert error_of((mount.path / "a.bin" / "x").stat) == errno.ENOTDIR


def test_attributes(mount: Mounted) -> None:
    """Types, permissions, sizes, owners and link counts."""
    file, folder = (mount.path / "a.bin").stat(), (mount.path / "dir").stat()
    assert (file.st_mode, file.st_size, file.st_nlink) == (0o100444, len(CONTENTS["a.bin"]), 1)
    assert (folder.st_mode, folder.st_nlink) == (0o40555, 2)
    assert (file.st_uid, file.st_gid) == (os.geteuid(), os.getegid())
    assert file.st_blocks == -(-file.st_size // 512)
    assert mount.path.stat().st_nlink == 4


def test_times_are_constant(mount: Mounted) -> None:
    """Reading changes no time."""
    before = (mount.path / "b.bin").stat()
    (mount.path / "b.bin").read_bytes()
    after = (mount.path / "b.bin").stat()
    assert before == after
    assert after.st_mtime_ns == after.st_ctime_ns == 10**18


def test_inodes_are_fixed(engine: FakeEngine, tmp_path: Path) -> None:
    """A second mount of the same source shows the same inode numbers."""
    seen = []
    for _ in range(2):
        with mounted(engine.cache_dir, tmp_path) as mount:
            seen.append({path.name: path.stat().st_ino for path in mount.path.rglob("*")})
    assert seen[0] == seen[1]


def test_listing(mount: Mounted) -> None:
    """`.`, `..`, folders, then files by name."""
    shown = subprocess.run(["ls", "-aU", str(mount.path)], capture_output=True, text=True, check=True).stdout.split()
    assert shown == [".", "..", ".mdsfs", "dir", "a.bin", "b.bin", "c.bin", "empty"]


def test_statfs(mount: Mounted) -> None:
    """The size of the data, nothing free."""
    found = os.statvfs(mount.path)
    assert found.f_blocks * found.f_frsize >= sum(map(len, CONTENTS.values())) > (found.f_blocks - 1) * found.f_frsize
    assert (found.f_bavail, found.f_ffree) == (0, 0)
    assert found.f_flag & os.ST_RDONLY


# ---- reading -------------------------------------------------------------------------------------------------------


def test_bytes(mount: Mounted) -> None:
    """Whole files and random ranges are the source's bytes."""
    for name, data in CONTENTS.items():
        assert (mount.path / name).read_bytes() == data
    choose = random.Random(5)
    fd = os.open(mount.path / "a.bin", os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    for _ in range(50):
        offset, size = choose.randrange(2 * MIB), choose.randrange(1, 200_000)
        assert os.pread(fd, size, offset) == CONTENTS["a.bin"][offset : offset + size]
    os.close(fd)


def test_past_the_end(mount: Mounted) -> None:
    """Nothing is behind the end, and a read across it stops there."""
    fd = os.open(mount.path / "b.bin", os.O_RDONLY)
    assert os.pread(fd, 100, 5000) == os.pread(fd, 100, 10**9) == b""
    assert os.pread(fd, 9999, 4990) == CONTENTS["b.bin"][4990:]
    os.close(fd)


def test_page_cache(mount: Mounted, engine: FakeEngine) -> None:
    """A file that was read is read again from memory, though it was closed and the engine has dropped it."""
    (mount.path / "b.bin").read_bytes()
    engine.evict(B)
    asked = len(engine.wants)
    assert (mount.path / "b.bin").read_bytes() == CONTENTS["b.bin"]
    assert len(engine.wants) == asked


def test_mmap(mount: Mounted, engine: FakeEngine) -> None:
    """Private and shared maps give the bytes."""
    # Copying from a map holds the GIL, and this process is also the engine: it must have nothing left to answer.
    engine.fill(A)
    read_at(mount.path / "a.bin", 0)
    for flags in (mmap.MAP_SHARED, mmap.MAP_PRIVATE):
        with (mount.path / "a.bin").open("rb") as file, mmap.mmap(file.fileno(), 0, flags, mmap.PROT_READ) as mapped:
            assert mapped[:] == CONTENTS["a.bin"]


def test_mmap_of_what_cannot_be_fetched(mount: Mounted, engine: FakeEngine) -> None:
    """A mapped page that can't be fetched kills the program with SIGBUS."""
    engine.failure = CORRUPT
    code = "import mmap, sys; file = open(sys.argv[1], 'rb'); mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)[0]"
    done = subprocess.run([sys.executable, "-c", code, str(mount.path / "b.bin")], capture_output=True, check=False)
    assert done.returncode == -signal.SIGBUS


def test_parallel(mount: Mounted, engine: FakeEngine) -> None:
    """With twenty readers stuck on one file, another file's resident bytes and a listing come at once."""
    engine.fill(C)
    engine.allowed.clear()
    with ThreadPoolExecutor(20) as pool:
        stuck = [pool.submit(read_at, mount.path / "a.bin", number * 65536) for number in range(20)]
        until(lambda: len(engine.wants) >= 20)
        assert (mount.path / "c.bin").read_bytes() == CONTENTS["c.bin"]
        assert len(os.listdir(mount.path)) == 6
        assert not any(future.done() for future in stuck)  # it did not wait for them
        engine.allowed.set()
        for number, future in enumerate(stuck):
            assert future.result() == CONTENTS["a.bin"][number * 65536 :][:4096]


def read_at(path: Path, offset: int) -> bytes:
    """4 KiB by a descriptor of its own."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.pread(fd, 4096, offset)
    finally:
        os.close(fd)


def test_deadline(engine: FakeEngine, tmp_path: Path) -> None:
    """A read that gets no answer is EIO at the deadline; the next one may succeed."""
    with mounted(engine.cache_dir, tmp_path, read_timeout=0.3) as mount:
        engine.allowed.clear()
        assert error_of((mount.path / "b.bin").read_bytes) == errno.EIO
        engine.allowed.set()
        until(lambda: is_read(mount.path / "b.bin", CONTENTS["b.bin"]))


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (CORRUPT, errno.EIO),
        (CredentialsRefusedError("refused"), errno.EACCES),
        (ObjectMissingError("gone"), errno.ENOENT),
        (ObjectChangedError("changed"), errno.ESTALE),
    ],
)
def test_failure(mount: Mounted, engine: FakeEngine, failure: StreamingError, expected: int) -> None:
    """Each kind of failure has its errno; the reason is logged once and shown in the status."""
    engine.failure = failure
    for _ in range(3):
        assert error_of((mount.path / "b.bin").read_bytes) == expected
    assert mount.log.count(str(failure)) == 1
    errors = json.loads((mount.path / ".mdsfs/status").read_bytes())["mount"]["errors"]
    assert [(each["file"], each["reason"]) for each in errors] == [("b.bin", str(failure))]
    engine.failure = None
    assert (mount.path / "b.bin").read_bytes() == CONTENTS["b.bin"]


def test_never_mixed(engine: FakeEngine, tmp_path: Path) -> None:
    """When the next engine has another version of the data, reads are ESTALE."""
    with contextlib.ExitStack() as engines, mounted(engine.cache_dir, tmp_path) as mount:
        assert (mount.path / "b.bin").read_bytes() == CONTENTS["b.bin"]
        engines.enter_context(FakeEngine(engine.cache_dir, {**CONTENTS, "b.bin": bytes(6000)}))
        engine.disconnect()
        assert error_of((mount.path / "a.bin").read_bytes) == errno.ESTALE


def test_engine_dies(mount: Mounted, engine: FakeEngine) -> None:
    """A read that waits while its engine dies gets its bytes from the next one."""
    engine.allowed.clear()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit((mount.path / "c.bin").read_bytes)
        until(engine.wanted.is_set)
        engine.wanted.clear()
        engine.disconnect()
        until(engine.wanted.is_set)
        engine.allowed.set()
        assert waiting.result() == CONTENTS["c.bin"]


# ---- everything else -----------------------------------------------------------------------------------------------


def test_read_only(mount: Mounted) -> None:
    """Creating, changing, renaming and removing are EROFS."""
    file, new = mount.path / "a.bin", mount.path / "new"
    changes: list[Callable[[], object]] = [
        lambda: new.write_bytes(b""),
        lambda: os.open(file, os.O_RDWR),
        lambda: os.truncate(file, 0),
        new.mkdir,
        lambda: new.symlink_to(file),
        lambda: os.link(file, new),
        lambda: file.rename(new),
        file.unlink,
        (mount.path / "dir").rmdir,
        lambda: file.chmod(0o777),
        lambda: os.utime(file),
        lambda: os.setxattr(file, "user.x", b"1"),
        lambda: os.removexattr(file, "user.mdsfs.state"),
    ]
    assert {error_of(change) for change in changes} == {errno.EROFS}


def test_execute(mount: Mounted) -> None:
    """The mount is nosuid, nodev and noexec."""
    options = next(line for line in Path("/proc/mounts").read_text().splitlines() if str(mount.path) in line)
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(options.split()[3].split(","))
    assert options.split()[0] == "fake://source"
    assert options.split()[2] == "fuse.mdsfs"


def test_status_file(mount: Mounted) -> None:
    """A JSON document that changes with what happens, although its size is shown as 0."""
    status = mount.path / ".mdsfs/status"
    assert status.stat().st_size == 0
    first = json.loads(status.read_bytes())["mount"]
    assert first["mountpoint"] == str(mount.path)
    assert first["pid"] == mount.process.pid
    assert subprocess.run(["cat", str(status)], capture_output=True, check=True).stdout.startswith(b"{")
    assert first["kernel"].keys() == {"readahead_kb", "max_background", "congestion_threshold"}


def test_extended_attributes(mount: Mounted) -> None:
    """Files tell their state; an unknown attribute, or a hash that nobody knows, is ENODATA."""
    file = mount.path / "dir/d.bin"
    assert set(os.listxattr(file)) == {f"user.mdsfs.{name}" for name in ("state", "source", "hash", "verified")}
    assert os.getxattr(file, "user.mdsfs.state") == b"absent"
    assert os.getxattr(file, "user.mdsfs.verified") == b"none"
    assert os.getxattr(file, "user.mdsfs.source") == b"fake://dir/d.bin"
    for name in ("user.mdsfs.hash", "user.other", "security.capability"):
        assert error_of(lambda name=name: os.getxattr(file, name)) == errno.ENODATA


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_unmount(engine: FakeEngine, tmp_path: Path, number: signal.Signals) -> None:
    """Each signal unmounts and ends with 0, with a file open and a read waiting, which fails."""
    engine.allowed.clear()
    with mounted(engine.cache_dir, tmp_path, read_timeout=60) as mount, ThreadPoolExecutor(1) as pool:
        with (mount.path / "b.bin").open("rb"):
            waiting = pool.submit((mount.path / "a.bin").read_bytes)
            until(engine.wanted.is_set)
            mount.process.send_signal(number)
            assert mount.process.wait(60) == 0
            with pytest.raises(OSError, match=r"Input/output error|not connected|connection abort"):
                waiting.result()
        assert mountpoints.mount_at(str(mount.path)) is None


def test_killed(engine: FakeEngine, tmp_path: Path) -> None:
    """After kill -9 the mountpoint says ENOTCONN; checking it for the next mount clears it, and that mount works."""
    with mounted(engine.cache_dir, tmp_path) as mount:
        mount.process.kill()
        mount.process.wait()
        assert error_of(lambda: os.listdir(mount.path)) == errno.ENOTCONN
        mountpoints.check_mountpoint(str(mount.path))
        assert mountpoints.mount_at(str(mount.path)) is None
    with mounted(engine.cache_dir, tmp_path) as mount:
        assert (mount.path / "b.bin").read_bytes() == CONTENTS["b.bin"]


def test_a_living_mount_is_refused(mount: Mounted) -> None:
    """A mountpoint whose mount answers is not mounted over."""
    with pytest.raises(StreamingError, match="already mounted"):
        mountpoints.check_mountpoint(str(mount.path))


def test_unmounting_from_outside_ends_the_daemon(mount: Mounted) -> None:
    """umount is enough: the daemon ends by itself, with 0."""
    mountpoints.unmount(str(mount.path))
    assert mount.process.wait(60) == 0


def test_a_busy_mount_names_who_uses_it(mount: Mounted) -> None:
    """Unmounting is refused while a process has a file open, a map, or its working directory there; it is named."""
    code = "import sys, os; os.chdir(sys.argv[1]); print('there', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(mount.path / "dir")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as user:
        assert user.stdout is not None
        user.stdout.readline()
        with pytest.raises(StreamingError, match=rf"{user.pid} \(.*os.chdir"):
            mountpoints.unmount(str(mount.path))
        with (mount.path / "b.bin").open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ):
            assert {each.pid for each in mountpoints.users_of(str(mount.path))} == {user.pid, os.getpid()}
        user.communicate()
    mountpoints.unmount(str(mount.path))


def test_engine_attribute(tmp_path: Path) -> None:
    """The folder with an index.json tells where the engine listens and what it calls the dataset; others do not."""
    index = b'{"shards": [], "version": 2}'
    with FakeEngine(tmp_path / "cache", CONTENTS, index) as engine, mounted(engine.cache_dir, tmp_path) as mount:
        assert os.listxattr(mount.path) == ["user.mdsfs.engine"]
        found = json.loads(os.getxattr(mount.path, "user.mdsfs.engine"))
        assert found["socket"] == str(socket_path(engine.cache_dir))
        assert (found["protocol"], found["url"], found["dataset_prefix"]) == (1, "fake://source", "")
        assert found["identity"] == {"endpoint": None}
        assert os.listxattr(mount.path / "dir") == []
        assert (mount.path / "index.json").read_bytes() == index


def test_a_silent_engine_still_leaves_a_status(mount: Mounted, engine: FakeEngine) -> None:
    """When the engine does not answer, the status shows the mount's half and says so."""
    engine.answers_status.clear()
    document = json.loads((mount.path / ".mdsfs/status").read_bytes())
    engine.answers_status.set()
    assert "cache" not in document
    assert "did not answer" in document["mount"]["engine_error"]
