"""The configuration file: TOML with the long options of `mdsfs mount`, `mdsfs engine` and `mdsfs umount` as keys.

Keys at the top are for every command that knows them; those of a table `[mount]`, `[engine]` or `[umount]` are for
that command and win over them. The file holds no secrets: it may be shown to anybody.
"""

from __future__ import annotations

import difflib
import tomllib
from typing import TYPE_CHECKING

from mdsfs.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

__all__ = ["Value", "read_config"]

Value = str | int | float | bool

# Written here they would be readable for everybody who may read the file, and shown by `mdsfs config`.
_SECRETS = ("secret", "password", "token", "access_key", "session")


def read_config(path: Path, command: str, keys: Mapping[str, Collection[str]]) -> dict[str, Value]:
    """The values of the file for one command; `keys` are the keys that each command knows.

    Raises UsageError for a file that can't be read, is no TOML, or holds a key that no command knows.
    """
    document = _load(path)
    tables = {name: table for name in keys if isinstance(table := document.get(name), dict)}
    known = set().union(*keys.values())
    found = {_key(path, key, known): value for key, value in document.items() if key not in tables}
    own = {name: {_key(path, key, keys[name]): value for key, value in table.items()} for name, table in tables.items()}
    found.update(own.get(command, {}))
    values: dict[str, Value] = {}
    for key, value in found.items():
        if not isinstance(value, (str, int, float, bool)):
            raise UsageError(f"{path}: {key}: expected a string, a number, true or false")
        if key in keys[command]:
            values[key] = value
    return values


def _load(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"cannot read the configuration {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from error


def _key(path: Path, key: str, known: Collection[str]) -> str:
    name = key.replace("-", "_")
    if name in known:
        return name
    if any(word in name.lower() for word in _SECRETS):
        raise UsageError(
            f"{path}: {key}: no secrets here: name a file of your own with credentials_file, or use the environment"
        )
    near = difflib.get_close_matches(name, known, 1)
    hint = f", did you mean {near[0]}?" if near else " (keys are the long options of mdsfs mount, engine and umount)"
    raise UsageError(f"{path}: unknown key {key}{hint}")
