"""Hashes: the names of the index, and digests equal to the libraries'."""

from __future__ import annotations

import hashlib
import sys

import pytest
import xxhash

from streaming.errors import MissingDependencyError
from streaming.mds.hashing import DIGEST_SIZES, hash_all, hash_names, is_hash, new_hash, normalize_hashes


def test_names_are_hashlibs_and_xxhashs() -> None:
    """All that hashlib guarantees but shake, and five of xxhash; the table of sizes is right."""
    expected = {name for name in hashlib.algorithms_guaranteed if not name.startswith("shake_")}
    assert set(hash_names()) == expected | {"xxh32", "xxh64", "xxh128", "xxh3_64", "xxh3_128"}
    for name in hash_names():
        assert len(new_hash(name).hexdigest()) == 2 * DIGEST_SIZES[name]
    assert is_hash("sha1")
    assert not is_hash("shake_128")


def test_digests_equal_the_libraries() -> None:
    """In one piece or in several."""
    expected = {
        "blake2b": hashlib.blake2b(b"abc").hexdigest(),
        "md5": hashlib.md5(b"abc").hexdigest(),
        "xxh3_64": xxhash.xxh3_64(b"abc").hexdigest(),
        "xxh128": xxhash.xxh128(b"abc").hexdigest(),
    }
    assert hash_all(expected, b"abc") == expected
    assert hash_all(expected, b"a", b"", memoryview(b"bc")) == expected


def test_what_writers_may_be_given() -> None:
    """A string, commas, any order, duplicates: sorted and unique names."""
    assert normalize_hashes(None) == ()
    assert normalize_hashes("sha1") == ("sha1",)
    assert normalize_hashes("xxh64, sha1") == ("sha1", "xxh64")
    assert normalize_hashes(("xxh64", "sha1", "sha1")) == ("sha1", "xxh64")
    with pytest.raises(ValueError, match="Invalid hash: sha0"):
        normalize_hashes(["sha1", "sha0"])


def test_missing_xxhash_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names stay known without the library; computing says what to install."""
    monkeypatch.setitem(sys.modules, "xxhash", None)
    assert is_hash("xxh64")
    with pytest.raises(MissingDependencyError, match=r"pip install 'mdsfs\[xxhash\]'"):
        new_hash("xxh64")
