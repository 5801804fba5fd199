"""Hash names of index.json and the objects that compute them.

Everything that hashlib guarantees except the shake family (its digests have no fixed length), and the xxHash family,
which an optional library brings. Names and digest lengths are known without that library, so that an index can be read
without it.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Protocol

from streaming.errors import MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["DIGEST_SIZES", "Hash", "hash_all", "hash_names", "is_hash", "new_hash", "normalize_hashes"]

_XXHASH_SIZES = {"xxh32": 4, "xxh64": 8, "xxh128": 16, "xxh3_64": 8, "xxh3_128": 16}

# Written out and not asked of hashlib: asking means computing fourteen hashes at import.
_HASHLIB_SIZES = {
    "blake2b": 64,
    "blake2s": 32,
    "md5": 16,
    "sha1": 20,
    "sha224": 28,
    "sha256": 32,
    "sha384": 48,
    "sha3_224": 28,
    "sha3_256": 32,
    "sha3_384": 48,
    "sha3_512": 64,
    "sha512": 64,
}

DIGEST_SIZES: Mapping[str, int] = _HASHLIB_SIZES | _XXHASH_SIZES


class Hash(Protocol):
    """What hashlib's and xxhash's objects have in common."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        """Takes in more bytes; releases the GIL while it works."""

    def hexdigest(self) -> str:
        """The hash of all bytes so far, as index.json writes it."""


def hash_names() -> list[str]:
    """Every name that index.json may use, sorted."""
    return sorted(DIGEST_SIZES)


def is_hash(name: str) -> bool:
    """Whether the name is one that index.json may use."""
    return name in DIGEST_SIZES


def new_hash(name: str) -> Hash:
    """An empty hash. Raises ValueError for an unknown name, MissingDependencyError where xxhash is not there."""
    if name in _HASHLIB_SIZES:
        return hashlib.new(name, usedforsecurity=False)
    if name not in _XXHASH_SIZES:
        raise ValueError(f"Invalid hash: {name}. Expected one of {', '.join(hash_names())}")
    try:
        import xxhash
    except ImportError as error:
        raise MissingDependencyError(f"hash {name} needs xxhash: pip install 'mdsfs[xxhash]'") from error
    made: Hash = getattr(xxhash, "xxh3_128" if name == "xxh128" else name)()
    return made


def hash_all(names: Iterable[str], *pieces: bytes | bytearray | memoryview) -> dict[str, str]:
    """Name to hex digest of the pieces one after the other, for each name in its order."""
    digests = {}
    for name in names:
        made = new_hash(name)
        for piece in pieces:
            made.update(piece)
        digests[name] = made.hexdigest()
    return digests


def normalize_hashes(hashes: str | Iterable[str] | None) -> tuple[str, ...]:
    """A writer's `hashes` argument as sorted, unique, usable names; a string is one name or several with commas."""
    if hashes is None:
        return ()
    names = hashes.split(",") if isinstance(hashes, str) else list(hashes)
    cleaned = sorted({name.strip() for name in names} - {""})
    for name in cleaned:
        new_hash(name)
    return tuple(cleaned)
