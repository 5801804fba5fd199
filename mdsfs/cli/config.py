"""`mdsfs config`: the options as a mount and its engine would take them now, and where each comes from."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdsfs.config.layers import FOREIGN, keys_of, parse_layered

from .arguments import default_cache_dir, mode

if TYPE_CHECKING:
    import argparse

__all__ = ["add_parser", "effective", "run"]

# Shown by name only. The AWS library looks for more (profiles, roles), which this command does not imitate.
SECRET_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_WEB_IDENTITY_TOKEN_FILE")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "config",
        help="show the options that would hold, and where each comes from",
        description="Show the options of mount, engine and umount: file, then environment (MDSFS_…), then flags.",
        epilog="examples:\n  mdsfs config --config /etc/mdsfs/ds.toml\n  mdsfs config --json",
    )
    parser.add_argument("--config", metavar="FILE", type=Path, help="default: the file that MDSFS_CONFIG names, if any")
    parser.add_argument("--json", action="store_true", help="as JSON: value and origin of every option by command")


def run(args: argparse.Namespace) -> int:
    """Print the options."""
    document = effective(args.config)
    print(json.dumps(document, indent=1) if args.json else _render(document))
    return 0


def effective(config: Path | None) -> dict[str, dict[str, dict[str, Any]]]:
    """Value and origin (`default`, `file …`, `environment …`) of each option by command; secrets are only named."""
    from .main import layered_parsers

    parsers = layered_parsers()
    keys = {name: frozenset(keys_of(parser)) for name, parser in parsers.items()}
    words = ["--config", str(config)] if config else []
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name, parser in parsers.items():
        settled, _ = parse_layered(parser, words, lambda: keys)
        found[name] = {
            key: {"value": _shown(action, _value(settled, key)), "origin": settled.origins.get(key, "default")}
            for key, action in sorted(keys_of(parser).items())
        }
    secrets = {name: {"value": "set", "origin": "environment"} for name in SECRET_VARIABLES if os.environ.get(name)}
    return {**found, "credentials": secrets}


def _value(settled: argparse.Namespace, key: str) -> Any:
    value = getattr(settled, key, None)
    if value is None and key == "cache_dir":
        return default_cache_dir()
    if value is None and key in FOREIGN:
        return next((os.environ[name] for name in FOREIGN[key] if os.environ.get(name)), None)
    return value


def _shown(action: argparse.Action, value: Any) -> Any:
    if action.type is mode and isinstance(value, int):
        return f"{value:04o}"
    if isinstance(value, (str, Path)):
        return re.sub(r"(?<=://)[^/@]*@", "…@", str(value))
    return value


def _render(document: dict[str, dict[str, dict[str, Any]]]) -> str:
    """TOML that says the same again: what all commands share at the top, the rest in tables; unset keys as comments."""
    secrets = document["credentials"]
    commands = {name: settings for name, settings in document.items() if name != "credentials"}
    everywhere = list(dict.fromkeys(key for each in commands.values() for key in each))
    shared = {}
    for key in everywhere:
        values = [settings[key] for settings in commands.values() if key in settings]
        if all(value == values[0] for value in values):
            shared[key] = values[0]
    lines = [_line(key, setting) for key, setting in sorted(shared.items())]
    for name, settings in commands.items():
        own = [_line(key, setting) for key, setting in settings.items() if key not in shared]
        lines += ["", f"[{name}]", *own] if own else []
    lines += [""] + [f"# {name} is set in the environment; it is not shown" for name in secrets] if secrets else []
    return "\n".join(lines)


def _line(key: str, setting: dict[str, Any]) -> str:
    value = setting["value"]
    text = f"# {key} =" if value is None else f"{key} = {json.dumps(value, ensure_ascii=False)}"
    return f"{text:<48}  # {setting['origin']}"
