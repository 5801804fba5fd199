"""Where an option's value comes from: configuration file < environment < command line, each through the same parser.

A parser becomes layered by `configurable`; from then on whatever parses with it sees the settled values, and
`args.origins` says where each came from. So a value in a file is read, checked and refused exactly like a flag's.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdsfs.errors import UsageError
from streaming.remote.options import ENDPOINT_VARIABLES

from .file import read_config

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from .file import Value

__all__ = ["POSITIONAL", "PREFIX", "check_positionals", "configurable", "is_layered", "keys_of", "parse_layered"]

PREFIX = "MDSFS_"

# Variables of others that mean the same. They are read where the store is opened; here they only silence the file.
FOREIGN = {
    "endpoint_url": ENDPOINT_VARIABLES,
    "region": ("AWS_REGION", "AWS_DEFAULT_REGION"),
    "profile": ("AWS_PROFILE",),
    "credentials_file": ("AWS_SHARED_CREDENTIALS_FILE",),
}
# What belongs to one call and is no property of a mount or an engine.
OF_ONE_CALL = frozenset({"help", "config", "mount_options", "foreground", "stop", "ready_fd", "command"})
# How a positional is declared that a file may give instead.
POSITIONAL: dict[str, Any] = {"nargs": "?", "default": argparse.SUPPRESS}
_UNSET: Any = object()
_TRUTHS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def configurable(parser: argparse.ArgumentParser, command: str, expand: Callable[..., list[str]] | None = None) -> None:
    """Have a parser take values from a file (`--config`, MDSFS_CONFIG) and the environment (MDSFS_…) as well.

    Its positionals, which must have `**POSITIONAL`, may then come from there too. `expand` turns the lists given with
    `-o` into long options, which count as flags.
    """
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help="TOML with these options as keys; MDSFS_… variables and flags win over it",
    )
    parser.set_defaults(layered=(command, expand))


def is_layered(parser: argparse.ArgumentParser) -> bool:
    """Whether a parser was made `configurable`."""
    return parser.get_default("layered") is not None


def check_positionals(parser: argparse.ArgumentParser, settled: argparse.Namespace) -> None:
    """Refuse a command line that gives some of the positionals and leaves others to a file, or gives none at all."""
    names = [action.dest for action in parser._actions if not action.option_strings]
    given = [name for name in names if settled.origins.get(name) == "command line"]
    missing = [name.upper() for name in names if name not in (given or vars(settled))]
    if missing:
        parser.error(f"the following arguments are required: {', '.join(missing)}")


def keys_of(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """What may stand in a file for this parser: the destinations of its long options and its positionals."""
    return {
        action.dest: action
        for action in parser._actions
        if action.dest not in OF_ONE_CALL and action.dest is not argparse.SUPPRESS
    }


def parse_layered(
    parser: argparse.ArgumentParser, words: Sequence[str], keys: Callable[[], Mapping[str, Collection[str]]]
) -> tuple[argparse.Namespace, list[str]]:
    """The settled namespace, and the words that the parser does not know. `keys()` are the keys of every command.

    Raises UsageError, with the origin in front where it is not the command line.
    """
    command, expand = parser.get_default("layered")
    flags, rest = _explicit(parser, words)
    if expand is not None and (lists := flags.pop("mount_options", None)):
        extra = expand(lists, frozenset(_long(action) for action in parser._actions) - {"help"})
        flags.update(_explicit(parser, extra)[0])
    origins = dict.fromkeys(flags, "command line")
    variables = _from_environment(parser)
    values = {key: value for key, (value, _) in variables.items()}
    origins = {key: f"environment {name}" for key, (_, name) in variables.items()} | origins
    path = flags.get("config") or values.get("config")
    if path is not None:
        for key, value in _from_file(parser, Path(path), command, keys()).items():
            if key not in origins:
                origins[key] = f"file {path}"
                values[key] = value
    defaults = {action.dest: action.default for action in parser._actions if action.default is not argparse.SUPPRESS}
    settled = parser._defaults | defaults | values | flags
    settled.pop("help", None)
    return argparse.Namespace(**settled, origins=origins), rest


def _explicit(parser: argparse.ArgumentParser, words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """What these words set, without any defaults."""
    # An appending action adds to what is there, hence None for those.
    before = {
        action.dest: None if isinstance(action, argparse._AppendAction) else _UNSET
        for action in parser._actions
        if action.dest is not argparse.SUPPRESS and (action.option_strings or action.default is not argparse.SUPPRESS)
    }
    silent = dict.fromkeys(parser._defaults, _UNSET)
    found, rest = argparse.ArgumentParser.parse_known_args(parser, words, argparse.Namespace(**before, **silent))
    return {key: value for key, value in vars(found).items() if value is not _UNSET and value is not None}, rest


def _long(action: argparse.Action) -> str:
    return next((option[2:] for option in action.option_strings if option.startswith("--")), "help")


def _from_environment(parser: argparse.ArgumentParser) -> dict[str, tuple[Any, str]]:
    """Value and variable of each key that the environment sets; an empty variable is none."""
    actions = keys_of(parser) | {action.dest: action for action in parser._actions if action.dest == "config"}
    found: dict[str, tuple[Any, str]] = {}
    for key, action in actions.items():
        name = PREFIX + key.upper()
        if text := os.environ.get(name):
            found[key] = (_read(parser, action, text, f"environment {name}"), name)
        elif foreign := next((each for each in FOREIGN.get(key, ()) if os.environ.get(each)), None):
            found[key] = (None, foreign)
    return found


def _from_file(
    parser: argparse.ArgumentParser, path: Path, command: str, keys: Mapping[str, Collection[str]]
) -> dict[str, Any]:
    actions = keys_of(parser)
    found = read_config(path, command, keys)
    return {key: _read(parser, actions[key], value, f"{path}: {key}") for key, value in found.items()}


def _read(parser: argparse.ArgumentParser, action: argparse.Action, value: Value, origin: str) -> Any:
    """A value as the parser would read it behind its flag."""
    if action.option_strings and action.nargs == 0:
        truth = _TRUTHS.get(str(value).lower())
        if truth is None:
            raise UsageError(f"{origin}: expected true or false, got {value!r}")
        return truth
    if isinstance(value, bool):
        raise UsageError(f"{origin}: expected a value, got {str(value).lower()}")
    try:
        found = parser._get_value(action, str(value))
        parser._check_value(action, found)
    except argparse.ArgumentError as error:
        raise UsageError(f"{origin}: {error.message}") from None
    return found
