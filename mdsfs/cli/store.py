"""The options that say how a store is reached, for commands that read one themselves."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from streaming.remote import RemoteOptions, open_remote

if TYPE_CHECKING:
    import argparse

    from streaming.remote import Remote

__all__ = ["add_store_options", "open_source", "remote_options"]


def add_store_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the options, which `remote_options` reads; returns their group."""
    group = parser.add_argument_group("store")
    store = group.add_argument
    store("--endpoint-url", metavar="URL", help="default: S3_ENDPOINT_URL, AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL")
    store("--region", metavar="NAME")
    store("--profile", metavar="NAME", help="profile of the AWS configuration")
    store("--no-sign-request", action="store_true", help="read anonymously")
    store("--requester-pays", action="store_true")
    return group


def remote_options(args: argparse.Namespace) -> RemoteOptions:
    """What the options say, and the environment where they are silent."""
    return RemoteOptions.from_environment(
        endpoint_url=args.endpoint_url,
        region=args.region,
        profile=args.profile,
        anonymous=args.no_sign_request or None,
        requester_pays=args.requester_pays or None,
    )


def open_source(source: str, options: RemoteOptions) -> Remote:
    """The remote of a URL, or of a path from here."""
    return open_remote(source if "://" in source else os.path.abspath(source), options)
