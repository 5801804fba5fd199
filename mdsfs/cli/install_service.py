"""`mdsfs install-service`: a mount that is there after each boot, kept alive by systemd."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdsfs.config.layers import keys_of
from mdsfs.supervision.install import Service, install

from . import engine, mount

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["add_parser", "run"]

# The units decide these: which engine serves, how long it stays, and where the log goes.
OF_THE_UNITS = frozenset({"no_spawn", "idle_exit", "log_file"})


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "install-service",
        help="have systemd mount a dataset now and after each boot",
        description="Write /etc/mdsfs/NAME.toml, install the units, enable and start the mount.",
        epilog="examples:\n  mdsfs install-service ds --source s3://bucket/dataset --mountpoint /mnt/ds --allow-other\n"
        "  mdsfs install-service ds --source /data --mountpoint /mnt/ds --root /image\n\n"
        "It returns when the mount answers. Logs: journalctl -u mdsfs@NAME -u mdsfs-engine@NAME",
    )
    parser.add_argument("name", metavar="NAME", help="of the service: mdsfs@NAME")
    parser.add_argument("--no-start", action="store_true", help="only write the files")
    parser.add_argument("--root", metavar="DIR", type=Path, default=Path("/"), help="write below DIR, start nothing")
    options = parser.add_argument_group("options of mdsfs mount and mdsfs engine, kept in the file").add_argument
    for key, action in _options().items():
        shown: dict[str, Any] = {"help": action.help, "default": argparse.SUPPRESS, "dest": f"set_{key}"}
        if action.option_strings and action.nargs == 0:
            shown["action"] = "store_true"
        else:
            shown |= {"type": _checked(action), "metavar": action.metavar or "|".join(map(str, action.choices or ()))}
        options(f"--{key.replace('_', '-')}", required=not action.option_strings, **shown)


def run(args: argparse.Namespace) -> int:
    """Install, and say what to look at."""
    settings = {key.removeprefix("set_"): value for key, value in vars(args).items() if key.startswith("set_")}
    for key in ("mountpoint", "cache_dir", "source", "credentials_file"):
        if key in settings and "://" not in settings[key]:
            settings[key] = os.path.abspath(settings[key])
    credentials = settings.pop("credentials_file", None)
    service = Service(args.name, settings, args.root.absolute(), credentials)
    start = not args.no_start and service.is_live()
    install(service, start=start)
    where = settings["mountpoint"]
    print(f"{service.unit}: {settings['source']} is mounted at {where}" if start else f"wrote {service.configuration}")
    return 0


def _options() -> dict[str, argparse.Action]:
    """What both commands take from a file, by key; the mount's first."""
    scratch = argparse.ArgumentParser(add_help=False).add_subparsers()
    for command in (mount, engine):
        command.add_parser(scratch)
    found: dict[str, argparse.Action] = {}
    for parser in scratch.choices.values():
        for key, action in keys_of(parser).items():
            if key not in OF_THE_UNITS:
                found.setdefault(key, action)
    return found


def _checked(action: argparse.Action) -> Callable[[str], str]:
    """The text itself, if the option would take it."""

    def check(text: str) -> str:
        if callable(action.type):
            action.type(text)
        if action.choices is not None and text not in action.choices:
            raise argparse.ArgumentTypeError(f"expected one of {', '.join(map(str, action.choices))}, got {text!r}")
        return text

    return check
