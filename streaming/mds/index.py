"""index.json, version 2: parsed strictly, written as mosaicml-streaming writes it.

Whoever reads an index decides from it which files to create, how large they are and what to fetch, so nothing in it is
taken on trust: every key of every shard is checked, and each violation names the shard, the key, what was expected and
what stands there. The text is read shard by shard, so that an index of a million shards is never held as a million
dictionaries.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from streaming.errors import IndexFormatError, IndexVersionError
from streaming.mds.compression import is_compression
from streaming.mds.hashing import DIGEST_SIZES
from streaming.mds.shards import JOINT_FORMATS, SPLIT_FORMATS, VERSION, FileInfo, Schema, ShardInfo

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Mapping

__all__ = [
    "INDEX_NAME",
    "JOINT_FORMATS",
    "MAX_INDEX_BYTES",
    "SPLIT_FORMATS",
    "VERSION",
    "FileInfo",
    "Index",
    "Schema",
    "ShardInfo",
    "dump_index",
    "parse_index",
    "shown_index",
]

INDEX_NAME = "index.json"

# 345 bytes describe a small MDS shard: this is three million of them, and still parsed in memory that a host has.
MAX_INDEX_BYTES = 1 << 30
# 256 TiB: far above any file, and far enough below 2**63 that offsets within a file never overflow.
MAX_FILE_BYTES = 1 << 48
# All files of a dataset together: sums over the dataset stay inside int64.
MAX_TOTAL_BYTES = 1 << 62
# MDS counts samples in 32 bits.
MAX_SHARD_SAMPLES = (1 << 32) - 1

# Names that a dataset's folder has for itself: the index, the mount's status folder, the cache's unfinished files.
_RESERVED = frozenset({INDEX_NAME, ".mdsfs", ".partial"})
_MAX_PART_BYTES = 255  # NAME_MAX
_MAX_PATH_BYTES = 4095  # PATH_MAX without its NUL

_COMMON_KEYS = frozenset(
    {"compression", "format", "hashes", "raw_data", "samples", "size_limit", "version", "zip_data"},
)
_COLUMN_KEYS = _COMMON_KEYS | {"column_encodings", "column_names"}
_META_KEYS = frozenset({"newline", "raw_meta", "zip_meta"})
_KEYS = {
    "mds": _COLUMN_KEYS | {"column_sizes"},
    "json": _COMMON_KEYS | _META_KEYS | {"columns"},
    "csv": _COLUMN_KEYS | _META_KEYS,
    "tsv": _COLUMN_KEYS | _META_KEYS,
    "xsv": _COLUMN_KEYS | _META_KEYS | {"separator"},
}
_FILE_KEYS = frozenset({"basename", "bytes", "hashes"})

_JSON_SPACE = re.compile(r"[ \t\n\r]*")
_LAST_VERSION = re.compile(r'"version"\s*:\s*(-?[0-9.eE+]{1,20}|null|"[^"]{0,20}")\s*\}\s*\Z')
_HEX = re.compile(r"[0-9a-f]*")


@dataclass(frozen=True, slots=True)
class Index:
    """A whole index.json."""

    shards: list[ShardInfo]

    @property
    def version(self) -> int:
        return VERSION

    @property
    def samples(self) -> int:
        """Samples in all shards."""
        return sum(shard.samples for shard in self.shards)

    @property
    def is_compressed(self) -> bool:
        """Whether any shard is stored compressed."""
        return any(shard.compression is not None for shard in self.shards)


# ---- writing --------------------------------------------------------------------------------------------------------


def dump_index(shards: Iterable[ShardInfo]) -> bytes:
    """The bytes of index.json, equal to what mosaicml-streaming writes for the same shards."""
    texts = ", ".join(json.dumps(shard.to_json(), sort_keys=True) for shard in shards)
    return f'{{"shards": [{texts}], "version": {VERSION}}}'.encode("ascii")


def shown_index(data: bytes | memoryview, index: Index | None = None) -> bytes:
    """The index that describes decompressed files: the same bytes where nothing is compressed.

    A reader that finds an index naming compressed files beside decompressed ones deletes or rejects them.
    """
    index = parse_index(data) if index is None else index
    if not index.is_compressed:
        return bytes(data)
    return dump_index(shard.shown() for shard in index.shards)


# ---- reading --------------------------------------------------------------------------------------------------------


def parse_index(data: bytes | memoryview, *, max_bytes: int = MAX_INDEX_BYTES) -> Index:
    """The index in `data`. Raises IndexFormatError naming shard, key, expected and got for whatever is wrong."""
    if len(data) > max_bytes:
        raise IndexFormatError(f"{INDEX_NAME}: expected at most {max_bytes} bytes, got {len(data)}")
    try:
        text = str(data, "utf-8")
    except UnicodeDecodeError as error:
        raise IndexFormatError(f"{INDEX_NAME}: expected UTF-8, got an invalid byte at {error.start}") from None
    last = _LAST_VERSION.search(text, max(0, len(text) - 200))
    if last and last.group(1) != str(VERSION):  # say so before the shards of another version look wrong
        raise _other_version(last.group(1))
    parser = _ShardParser()
    shards = [parser.shard(number, entry) for number, entry in enumerate(_entries(text))]
    total = sum(raw.bytes for shard in shards for raw, _ in shard.files())
    if total > MAX_TOTAL_BYTES:
        raise IndexFormatError(f"{INDEX_NAME}: expected at most {MAX_TOTAL_BYTES} bytes in all files, got {total}")
    return Index(shards)


def _other_version(found: str) -> IndexVersionError:
    return IndexVersionError(f"Unsupported streaming data version: {found}. Expected version {VERSION}.")


def _entries(text: str) -> Iterator[Any]:
    """The JSON values in "shards", one at a time; checks all that stands around them."""
    scan = _scanner(text)
    at = _expect(text, 0, "{")
    seen = set()
    while True:
        key, at = scan(_skip(text, at))
        at = _expect(text, at, ":")
        if key not in ("shards", "version") or key in seen:
            raise IndexFormatError(
                f'{INDEX_NAME}: expected the keys "shards" and "version" once each, got {_short(key)}'
            )
        seen.add(key)
        if key == "shards":
            at = yield from _array(text, at, scan)
        else:
            version, at = scan(_skip(text, at))
            if type(version) is not int or version != VERSION:
                raise _other_version(_short(version))
        at = _skip(text, at)
        if text[at : at + 1] != ",":
            break
        at += 1
    at = _skip(text, _expect(text, at, "}"))
    if at != len(text):
        raise IndexFormatError(f"{INDEX_NAME}: expected the end of the text at character {at}, got {_short(text[at:])}")
    if len(seen) != 2:
        raise IndexFormatError(f'{INDEX_NAME}: expected the keys "shards" and "version", got only {sorted(seen)}')


def _array(text: str, at: int, scan: Any) -> Generator[Any, None, int]:
    """Yields the values of the array at `at`; returns the position after it."""
    at = _skip(text, _expect(text, at, "["))
    if text[at : at + 1] == "]":
        return at + 1
    while True:
        value, at = scan(at)
        yield value
        at = _skip(text, at)
        if text[at : at + 1] != ",":
            return _expect(text, at, "]")
        at = _skip(text, at + 1)


def _scanner(text: str) -> Any:
    """A function from a position to (JSON value, position after it), with our errors."""
    decode = json.JSONDecoder(parse_constant=_no_constant).raw_decode

    def scan(at: int) -> tuple[Any, int]:
        try:
            return decode(text, at)
        except RecursionError:
            reason = f"JSON of sane depth at character {at}"
        except json.JSONDecodeError as error:
            reason = f"JSON ({error.msg} at character {error.pos})"
        except ValueError as error:  # a number of thousands of digits
            reason = f"JSON ({error}) near character {at}"
        raise IndexFormatError(f"{INDEX_NAME}: expected {reason}, got {_short(text[at : at + 40])}") from None

    return scan


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _skip(text: str, at: int) -> int:
    match = _JSON_SPACE.match(text, at)
    return match.end() if match else at


def _expect(text: str, at: int, mark: str) -> int:
    at = _skip(text, at)
    if text[at : at + 1] != mark:
        raise IndexFormatError(f"{INDEX_NAME}: expected {mark!r} at character {at}, got {_short(text[at : at + 40])}")
    return at + 1


class _ShardParser:
    """Checks the shards in turn; remembers what must not repeat, and shares what does."""

    def __init__(self) -> None:
        self._names: dict[str, int] = {}
        self._folders: dict[str, int] = {}
        self._raw_schema: dict[str, Any] = {}
        self._schema: Schema | None = None
        self._schemas: dict[Schema, Schema] = {}
        self._hashes: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._compressions: dict[str, str] = {}

    def shard(self, number: int, entry: Any) -> ShardInfo:
        """The shard that the JSON value describes."""
        where = f"shard {number}"
        if type(entry) is not dict:
            raise IndexFormatError(f"{where}: expected an object, got {_short(entry)}")
        if entry.get("version") != VERSION or type(entry["version"]) is not int:
            _wrong(where, "version", VERSION, entry.get("version", "nothing"))
        form = entry.get("format")
        keys = _KEYS.get(form) if type(form) is str else None
        if keys is None:
            _wrong(where, "format", f"one of {', '.join(sorted(_KEYS))}", form)
        if entry.keys() != keys:
            _wrong_keys(where, "", keys, entry)
        samples = _integer(where, "samples", entry["samples"], MAX_SHARD_SAMPLES)
        size_limit = entry["size_limit"]
        if size_limit is not None:
            size_limit = _integer(where, "size_limit", size_limit, MAX_FILE_BYTES)
        compression = self._compression(where, entry["compression"])
        hashes = self._hash_names(where, entry["hashes"])
        schema = self._shared_schema(where, entry, keys)
        raw_data, zip_data = self._pair(number, entry, "data", compression, hashes)
        raw_meta = zip_meta = None
        if "raw_meta" in keys:
            raw_meta, zip_meta = self._pair(number, entry, "meta", compression, hashes)
        shard = ShardInfo(schema, samples, compression, hashes, size_limit, raw_data, zip_data, raw_meta, zip_meta)
        _check_sizes(where, shard)
        return shard

    def _compression(self, where: str, name: Any) -> str | None:
        if name is None:
            return None
        if type(name) is str:
            known = self._compressions.get(name)
            if known is not None:
                return known
            if is_compression(name):
                return self._compressions.setdefault(name, name)
        return _wrong(where, "compression", "null or a known compression like zstd or zstd:7", name)

    def _hash_names(self, where: str, names: Any) -> tuple[str, ...]:
        if type(names) is not list or not all(type(name) is str for name in names):
            _wrong(where, "hashes", "a list of hash names", names)
        known = self._hashes.get(tuple(names))
        if known is not None:
            return known
        for name in names:
            if name not in DIGEST_SIZES:
                _wrong(where, "hashes", "known hash names", name)
        return self._hashes.setdefault(tuple(names), tuple(names))

    def _shared_schema(self, where: str, entry: dict[str, Any], keys: frozenset[str]) -> Schema:
        raw = {key: entry[key] for key in keys - _COMMON_KEYS - {"raw_meta", "zip_meta"}}
        raw["format"] = entry["format"]
        if self._schema is None or raw != self._raw_schema:
            schema = _parse_schema(where, raw)
            self._schema = self._schemas.setdefault(schema, schema)
            self._raw_schema = raw
        return self._schema

    def _pair(
        self, number: int, entry: dict[str, Any], kind: str, compression: str | None, hashes: tuple[str, ...]
    ) -> tuple[FileInfo, FileInfo | None]:
        raw = self._file(number, f"raw_{kind}", entry[f"raw_{kind}"], hashes)
        key = f"zip_{kind}"
        if compression is None:
            if entry[key] is not None:
                _wrong(f"shard {number}", key, "null, for compression is null", entry[key])
            return raw, None
        if entry[key] is None:
            _wrong(f"shard {number}", key, f"a file, for compression is {compression}", None)
        return raw, self._file(number, key, entry[key], hashes)

    def _file(self, number: int, key: str, info: Any, hashes: tuple[str, ...]) -> FileInfo:
        where = f"shard {number}"
        if type(info) is not dict:
            _wrong(where, key, "a file (basename, bytes, hashes)", info)
        if info.keys() != _FILE_KEYS:
            _wrong_keys(where, key, _FILE_KEYS, info)
        size = _integer(where, f"{key}.bytes", info["bytes"], MAX_FILE_BYTES)
        digests = info["hashes"]
        if type(digests) is not dict or digests.keys() != set(hashes):
            _wrong(where, f"{key}.hashes", f"digests for {list(hashes)}", digests)
        for name, digest in digests.items():
            if type(digest) is not str or len(digest) != 2 * DIGEST_SIZES[name] or not _HEX.fullmatch(digest):
                _wrong(where, f"{key}.hashes.{name}", f"{2 * DIGEST_SIZES[name]} lower-case hex digits", digest)
        basename = info["basename"]
        self._claim(number, f"{key}.basename", basename)
        return FileInfo(basename, size, digests)

    def _claim(self, number: int, key: str, name: Any) -> None:
        """Checks a path and that no other file has it, or is a folder of it."""
        problem = _name_problem(name)
        if problem is None and name in self._names:
            problem = f"a name of its own, but shard {self._names[name]} has it too"
        if problem is None and name in self._folders:
            problem = f"a file, but shard {self._folders[name]} has files below it"
        if problem is not None:
            _wrong(f"shard {number}", key, problem, name)
        self._names[name] = number
        cut = name.rfind("/")
        while cut > 0 and name[:cut] not in self._folders:
            folder = name[:cut]
            if folder in self._names:
                _wrong(f"shard {number}", key, f"a path, but {folder} is a file of shard {self._names[folder]}", name)
            self._folders[folder] = number
            cut = name.rfind("/", 0, cut)


def _name_problem(name: Any) -> str | None:
    """What a basename must be, if it is not: a relative path inside the dataset that is not one of its own."""
    if type(name) is not str or not name:
        return "a relative path"
    if "\0" in name or "\\" in name:
        return "a path without NUL and backslash"
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        return "a path that can be written as UTF-8"
    if len(encoded) > _MAX_PATH_BYTES:
        return f"a path of at most {_MAX_PATH_BYTES} bytes"
    parts = name.split("/") if "/" in name else [name]
    for part in parts:
        if part in ("", ".", ".."):
            return "a relative path that stays inside the dataset"
    if len(encoded) > _MAX_PART_BYTES and any(len(part.encode()) > _MAX_PART_BYTES for part in parts):
        return f"a path whose parts have at most {_MAX_PART_BYTES} bytes"
    if parts[0] in _RESERVED or parts[-1] == INDEX_NAME:
        return f"a path other than {', '.join(sorted(_RESERVED))}, which the dataset's folder has for itself"
    return None


def _parse_schema(where: str, raw: Mapping[str, Any]) -> Schema:
    form = raw["format"]
    if form == "json":
        columns = raw["columns"]
        if type(columns) is not dict:
            _wrong(where, "columns", "an object of name: encoding", columns)
        names, encodings = list(columns), list(columns.values())
    else:
        names, encodings = raw["column_names"], raw["column_encodings"]
    _strings(where, "column_names", names)
    _strings(where, "columns" if form == "json" else "column_encodings", encodings)
    if len(set(names)) != len(names):
        _wrong(where, "column_names", "names that differ", names)
    if len(encodings) != len(names):
        _wrong(where, "column_encodings", f"{len(names)} encodings, one a column", encodings)
    sizes = None
    if form == "mds":
        sizes = raw["column_sizes"]
        if type(sizes) is not list or len(sizes) != len(names):
            _wrong(where, "column_sizes", f"a list of {len(names)} sizes, one a column", sizes)
        for size in sizes:
            if size is not None:
                _integer(where, "column_sizes", size, MAX_FILE_BYTES)
    for key in ("newline", "separator"):
        if key in raw and (type(raw[key]) is not str or not raw[key]):
            _wrong(where, key, "a string that is not empty", raw[key])
    return Schema(
        form,
        tuple(names),
        tuple(encodings),
        None if sizes is None else tuple(sizes),
        raw.get("newline"),
        raw.get("separator"),
    )


def _check_sizes(where: str, shard: ShardInfo) -> None:
    """Refuses a file that is too small for the samples that it is said to hold."""
    head = 4 + 4 * (shard.samples + 1)
    if shard.schema.column_sizes is not None:
        each = sum(4 if size is None else size for size in shard.schema.column_sizes)
        least, size, key = head + shard.samples * each, shard.raw_data.bytes, "raw_data.bytes"
    else:
        assert shard.raw_meta is not None
        least, size, key = head, shard.raw_meta.bytes, "raw_meta.bytes"
    if size < least:
        _wrong(where, key, f"at least {least} for {shard.samples} samples", size)


def _integer(where: str, key: str, value: Any, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        _wrong(where, key, f"an integer from 0 to {most}", value)
    return value


def _strings(where: str, key: str, values: Any) -> None:
    if type(values) is not list or not all(type(value) is str for value in values):
        _wrong(where, key, "a list of strings", values)


def _wrong(where: str, key: str, expected: object, got: object) -> NoReturn:
    raise IndexFormatError(f"{where}: {key}: expected {expected}, got {_short(got)}")


def _wrong_keys(where: str, key: str, expected: Iterable[str], got: Mapping[str, Any]) -> NoReturn:
    missing, unknown = sorted(set(expected) - got.keys()), sorted(got.keys() - set(expected))
    told = [
        f"{word} {', '.join(map(_short, names))}"
        for word, names in (("missing", missing), ("unknown", unknown))
        if names
    ]
    raise IndexFormatError(f"{where}: {key and key + ': '}expected the keys {sorted(expected)}, got {'; '.join(told)}")


def _short(value: object) -> str:
    """A value in an error message: one line of bounded length, whatever stands in a hostile file."""
    text = ascii(value) if not isinstance(value, int) or value.bit_length() < 1000 else "an enormous number"
    return text if len(text) <= 100 else text[:97] + "..."
