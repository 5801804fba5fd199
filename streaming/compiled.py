"""The fast way to a sample: a function written for one schema, as a struct or a dataclass writes its own.

What it gives is what `streaming.mds.layout.sample_decoder` gives; where anything is unusual (bytes that can't be
decoded, blocks that are not in the cache) it gives up and asks the slow way, which knows what to do or to say.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from streaming.mds.encodings import find_encoding

if TYPE_CHECKING:
    from collections.abc import Callable

    from streaming.mds.shards import Schema

    Sample = Callable[[int], dict[str, Any]]

__all__ = ["compile_samples"]

# What decoders raise for bytes that are none of theirs; the slow way then says which shard and column.
_MISFITS = "(ValueError, LookupError, ArithmeticError, OSError, EOFError, SError)"


@lru_cache(maxsize=256)
def compile_samples(schema: Schema, views: bool, guarded: bool) -> Callable[..., Sample]:
    """A factory of a shard's function from id to sample.

    Called with (raw, view, words, slow, first, generations, file, whole).

    raw: object whose slices are bytes (a map, or bytes); view: a memoryview of it. words: the shard's count and
    offsets, known to be in order. slow: the same function, the other way. first: the id of the shard's first sample.
    Guarded: a sample is only believed while `generations[file]` is `whole[0]`, before and after copying it.
    """
    names: dict[str, Any] = {"SError": struct.error}
    columns = list(zip(schema.column_names, schema.column_encodings, schema.column_sizes or (), strict=True))
    varying = [number for number, (_, _, size) in enumerate(columns) if size is None]
    lines: list[str] = []
    if varying:
        names["lengths"] = struct.Struct(f"<{len(varying)}I").unpack_from
        lines.append("".join(f"n{number}, " for number in varying) + "= lengths(view, at)")
    end = f"at + {4 * len(varying)}" if varying else "at"
    for number, (_, _, size) in enumerate(columns):
        lines.append(f"e{number} = {end} + {f'n{number}' if size is None else size}")
        end = f"e{number}"
    starts = [f"(at + {4 * len(varying)})", *(f"e{number}" for number in range(len(columns)))]
    values = [
        f"{name!r}: {_value(number, encoding, starts[number], f'e{number}', views, names)}"
        for number, (name, encoding, _) in enumerate(columns)
    ]
    lines += [f"if {end} == words[word + 1]:", f"    sample = {{{', '.join(values)}}}"]
    check = ["generation = generations[file]", "if generation == whole[0]:"] if guarded else []
    accept = ["    if generations[file] == generation:", "        return sample"] if guarded else ["    return sample"]
    body = ["word = sample_id - before", "at = words[word]", *lines, *accept]
    inner = [*check, *(f"{'    ' if guarded else ''}{line}" for line in body)]
    source = "\n".join(
        [
            "def bind(raw, view, words, slow, first, generations=None, file=0, whole=()):",
            "    before = first - 1",  # the word of a sample's offset is behind the count
            "    def sample_of(sample_id):",
            "        try:",
            *(f"            {line}" for line in inner),
            f"        except {_MISFITS}:",
            "            pass",
            "        return slow(sample_id)",
            "    return sample_of",
        ]
    )
    exec(compile(source, f"<samples of {', '.join(schema.column_names)}>", "exec"), names)
    bind: Callable[..., Sample] = names["bind"]
    return bind


def _value(number: int, encoding: str, start: str, stop: str, views: bool, names: dict[str, Any]) -> str:
    """The expression for one column's value."""
    found = find_encoding(encoding)
    if encoding == "int":
        names["integer"] = struct.Struct("<q").unpack_from
        return f"integer(view, {start})[0]"
    if encoding == "str":
        return f"raw[{start}:{stop}].decode()"
    if encoding == "bytes":
        return f"{'view' if views else 'raw'}[{start}:{stop}]"
    names[f"decode{number}"] = found.decode
    # without views, and for decoders that may keep what they are given, the value gets bytes of its own
    return f"decode{number}({'view' if views else 'raw'}[{start}:{stop}])"
