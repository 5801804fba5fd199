"""Helpers of mosaicml-streaming: what they accept, what they give, and the words of their errors."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from streaming.base import distributed
from streaming.base.compression import (
    Brotli,
    Bzip2,
    Gzip,
    Snappy,
    Zstandard,
    compress,
    decompress,
    get_compression_extension,
    get_compressions,
    is_compression,
)
from streaming.base.format.json.encodings import is_json_encoded
from streaming.base.format.mds.encodings import (
    Encoding,
    JPEGList,
    StrDecimal,
    UInt8,
    _encodings,
    get_mds_encoded_size,
    is_mds_encoding,
    is_mds_encoding_safe,
    mds_decode,
    mds_encode,
)
from streaming.base.format.xsv.encodings import xsv_decode, xsv_encode
from streaming.base.hashing import get_hash, get_hashes
from streaming.base.util import (
    bytes_to_int,
    clean_stale_shared_memory,
    get_import_exception_message,
    get_list_arg,
    number_abbrev_to_int,
    retry,
    wait_for_file_to_exist,
)
from streaming.errors import ShardCorruptError
from tests.peer.alone import alone

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "expected"),
    [("100b", 100), ("4096", 4096), ("64MB", 1 << 26), (" 1.5kb ", 1536), ("2 gb", 2 << 30), (7, 7), (2.9, 2)],
)
def test_bytes_to_int(text: str | float, expected: int) -> None:
    """Suffixes are powers of 1024, in any case; fractions are cut off."""
    assert bytes_to_int(text) == expected


@pytest.mark.parametrize("text", ["", "b", "kb", "64m", "64mib", "1.5", "-1", "xkb", "1.5b"])
def test_bytes_to_int_refuses_what_the_peer_refuses(text: str) -> None:
    """The error says which suffixes there are."""
    with pytest.raises(ValueError, match=r"Unsupported value/suffix .*\. Supported suffix are \['b', 'kb', 'mb', 'gb'"):
        bytes_to_int(text)


@pytest.mark.parametrize(("text", "expected"), [("100k", 100_000), ("1.5M", 1_500_000), ("2b", 2 * 10**9), ("7", 7)])
def test_number_abbrev_to_int(text: str, expected: int) -> None:
    """Suffixes are powers of 1000."""
    assert number_abbrev_to_int(text) == expected


@pytest.mark.parametrize("text", ["", "k", "1.5", "5kb", "-3"])
def test_number_abbrev_to_int_refuses_the_rest(text: str) -> None:
    """The error says which suffixes there are."""
    with pytest.raises(
        ValueError, match=r"Unsupported value/suffix .*\. Supported suffix are \['k', 'm', 'b', 't'\]\."
    ):
        number_abbrev_to_int(text)


def test_get_list_arg() -> None:
    """An empty text is an empty list."""
    assert get_list_arg("") == []
    assert get_list_arg("a,b") == ["a", "b"]


def test_import_exception_message_names_an_extra_that_exists() -> None:
    """The command in the message installs this project with the extra."""
    assert get_import_exception_message("torch", "torch").endswith("run `pip install 'mdsfs[torch]'`.")


def test_retry_calls_again_until_it_works() -> None:
    """Each failed attempt is cleaned up after; other exceptions and the last one pass through."""
    calls: list[str] = []

    @retry((KeyError, OSError), lambda: calls.append("clean"), num_attempts=3, initial_backoff=0, max_jitter=0)
    def work(fail: int, error: type[Exception]) -> str:
        calls.append("try")
        if calls.count("try") <= fail:
            raise error("no")
        return "done"

    assert work(2, KeyError) == "done"
    assert calls == ["try", "clean", "try", "clean", "try"]
    calls.clear()
    with pytest.raises(OSError, match="no"):
        work(3, OSError)
    assert calls == ["try", "clean"] * 3
    calls.clear()
    with pytest.raises(TypeError):
        work(1, TypeError)
    assert calls == ["try"]


def test_retry_without_parentheses_and_without_attempts() -> None:
    """The bare decorator works; fewer than one attempt is refused."""

    @retry
    def work() -> int:
        return 5

    assert work() == 5
    assert work.__name__ == "work"
    with pytest.raises(ValueError, match="num_attempts must be at-least 1"):
        retry(num_attempts=0)


def test_wait_for_file(tmp_path: Path) -> None:
    """Returns at once for a file that is there; else the message, the limit and the time waited."""
    wait_for_file_to_exist(str(tmp_path), 60, 0, "never")
    with pytest.raises(RuntimeError, match=r"^gone: 0\.000 < \d+\.\d{3} secs\.$"):
        wait_for_file_to_exist(str(tmp_path / "gone"), 0, 0, "gone: ")


@alone()
def test_cleaning_shared_memory_leaves_other_programs_alone() -> None:
    """A segment that carries mosaicml-streaming's name survives: it may be a running job's."""
    from multiprocessing.shared_memory import SharedMemory

    for number in itertools.count():  # other programs of this machine may have the first ones
        with contextlib.suppress(FileExistsError):
            segment = SharedMemory(f"{number:06}_locals", create=True, size=8)
            break
    try:
        clean_stale_shared_memory()
        SharedMemory(segment.name).close()
    finally:
        segment.close()
        segment.unlink()


# ---- codecs ----------------------------------------------------------------------------------------------------------


def test_every_compression_gives_the_data_back() -> None:
    """By name and by class, empty data among them; None means none."""
    data = b"abc" * 1000
    for kind in (Brotli, Bzip2, Gzip, Snappy, Zstandard):
        name, codec = next(kind.each())
        for text in (b"", data):
            assert decompress(name, codec.compress(text)) == text
            assert codec.decompress(compress(name, text)) == text
    assert compress(None, data) is data
    assert decompress(None, data) is data
    assert get_compression_extension("zstd:7") == "zstd"
    assert not is_compression(None)


def test_classes_name_every_compression() -> None:
    """The codecs' names at all levels are those that index.json may use."""
    named = {name for kind in (Brotli, Bzip2, Gzip, Snappy, Zstandard) for name, _ in kind.each()}
    assert named == get_compressions()
    assert len(named) == 58


@pytest.mark.parametrize("name", ["zstd", "gz", "bz2", "br", "snappy"])
def test_nonsense_can_not_be_decompressed(name: str) -> None:
    """One class of error, whatever the library raises."""
    with pytest.raises(ShardCorruptError, match=f"can't be decompressed as {name}"):
        decompress(name, b"\xffthis is not compressed\xff")


def test_unknown_codecs_and_hashes() -> None:
    """The words are mosaicml-streaming's."""
    for call in (
        lambda: compress("lzma", b""),
        lambda: decompress("lzma", b""),
        lambda: get_compression_extension("lzma"),
    ):
        with pytest.raises(ValueError, match=r"^lzma is not a supported compression algorithm\.$"):
            call()
    with pytest.raises(ValueError, match=r"^crc is not a supported hash algorithm\.$"):
        get_hash("crc", b"")
    assert get_hash("sha1", b"") == "da39a3ee5e6b4b0d3255bfef95601890afd80709"
    assert {"sha1", "xxh3_64"} <= get_hashes()


# ---- encodings -------------------------------------------------------------------------------------------------------


def test_mds_encodings_by_name() -> None:
    """Values go there and back; bytes are stored as they are; the unknown is refused in the peer's words."""
    array = np.arange(3, dtype=np.int16)
    assert mds_encode("ndarray", array).hex() == "110403000001000200"
    assert mds_decode("ndarray:int16", mds_encode("ndarray:int16", array)).tolist() == [0, 1, 2]
    assert mds_encode("int", b"anything") == b"anything"
    assert (get_mds_encoded_size("int"), get_mds_encoded_size("str")) == (8, None)
    assert is_mds_encoding("ndarray:int8:2,2")
    assert not is_mds_encoding("foo:x")
    assert [is_mds_encoding_safe(name) for name in ("json", "pkl")] == [True, False]
    for call in (lambda: mds_encode("foo", 1), lambda: mds_decode("foo", b""), lambda: get_mds_encoded_size("foo")):
        with pytest.raises(ValueError, match=r"^Unsupported encoding: foo\.$"):
            call()


def test_mds_encodings_by_class() -> None:
    """A class of each encoding can be used without its name."""
    assert UInt8().encode(3) == b"\3"
    assert UInt8().size == 1
    assert StrDecimal().decode(b"1.10") == mds_decode("str_decimal", b"1.10")
    assert JPEGList().encode([]) == bytes(8)


def test_an_own_encoding_in_the_table_is_known() -> None:
    """The documented way to add an encoding: a class in `_encodings`."""

    class Reversed(Encoding):
        def encode(self, obj: str) -> bytes:
            self._validate(obj, str)
            return obj[::-1].encode()

        def decode(self, data: bytes) -> str:
            return bytes(data).decode()[::-1]

    _encodings["reversed"] = Reversed
    try:
        assert mds_decode("reversed", mds_encode("reversed", "abc")) == "abc"
        with pytest.raises(AttributeError, match="data should be of type <class 'str'>, but instead, found as"):
            mds_encode("reversed", 5)
    finally:
        del _encodings["reversed"]


def test_line_encodings() -> None:
    """Text of values and back, types checked."""
    assert [xsv_encode("int", 5), xsv_decode("float", "0.5")] == ["5", 0.5]
    assert is_json_encoded("str", "a")
    with pytest.raises(AttributeError, match="data should be of type <class 'int'>"):
        xsv_encode("int", "5")


# ---- ranks -----------------------------------------------------------------------------------------------------------


def test_ranks_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process by default; collectives do nothing then, and refuse to invent other ranks' objects."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    ask = (
        distributed.get_rank,
        distributed.get_world_size,
        distributed.get_local_rank,
        distributed.get_local_world_size,
    )
    assert [each() for each in ask] == [0, 1, 0, 1]
    distributed.barrier()
    assert distributed.all_gather_object("mine") == ["mine"]
    for name, value in (("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert [each() for each in ask] == [3, 4, 1, 2]
    assert not distributed.maybe_init_dist()
    with pytest.raises(RuntimeError, match=r"The world_size\(4\) > 1, but the distributed package"):
        distributed.all_gather_object("mine")


def test_collectives_use_an_initialised_group(tmp_path: Path) -> None:
    """Where the program has a process group, objects go through it."""
    program = (
        "import torch.distributed as dist\n"
        f"dist.init_process_group('gloo', init_method='file://{tmp_path}/meet', rank=0, world_size=1)\n"
        "from streaming.base.distributed import all_gather, all_gather_object, barrier, broadcast\n"
        "import torch\n"
        "barrier(); broadcast(torch.zeros(1), 0)\n"
        "into = [torch.zeros(1)]; all_gather(into, torch.ones(1))\n"
        "print(all_gather_object('mine'), into[0].item()); dist.destroy_process_group()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "['mine'] 1.0\n"
