"""Owns how a store is reached: what a caller may choose, and what the environment says when the caller is silent."""

from __future__ import annotations

import configparser
import hashlib
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .retrying import FIRST_PAUSE

PAYER_VARIABLE = "MOSAICML_STREAMING_AWS_REQUESTER_PAYS"
ENDPOINT_VARIABLES = ("S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")


@dataclass(frozen=True, slots=True)
class RemoteOptions:
    """How to reach a store. Times in seconds.

    `read_timeout` is how long a server may be silent; `total_timeout` how long one step (an answer, or the next bytes)
    may take with all its attempts; `attempts` how often one step is tried; `retry_pause` how long to wait before the
    second attempt, doubled before each later one. `addressing`: 'path' puts the bucket into the path, 'virtual' into
    the host name, 'auto' takes the path for every endpoint that is not Amazon's.
    """

    endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None
    anonymous: bool = False
    requester_pays: bool = False
    connect_timeout: float = 5.0
    read_timeout: float = 30.0
    total_timeout: float = 120.0
    attempts: int = 6
    retry_pause: float = FIRST_PAUSE
    addressing: str = "auto"

    def __post_init__(self) -> None:
        if self.addressing not in ("auto", "path", "virtual"):
            raise ValueError(f"addressing {self.addressing!r} is unknown: use auto, path or virtual")
        if self.attempts < 1:
            raise ValueError(f"attempts must be at least 1, not {self.attempts}")
        if min(self.connect_timeout, self.read_timeout, self.total_timeout) <= 0:
            raise ValueError("timeouts must be larger than 0")
        if self.retry_pause < 0:
            raise ValueError(f"retry_pause must not be negative, it is {self.retry_pause}")

    @classmethod
    def from_environment(cls, **overrides: Any) -> RemoteOptions:
        """What the variables say; an override that is None leaves the variable's word."""
        found: dict[str, Any] = {
            "endpoint_url": next((os.environ[name] for name in ENDPOINT_VARIABLES if os.environ.get(name)), None),
            "region": os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or None,
        }
        found.update({name: value for name, value in overrides.items() if value is not None})
        return cls(**found)

    @classmethod
    def from_identity(cls, identity: dict[str, Any], **overrides: Any) -> RemoteOptions:
        """The options behind an `identity`, for whoever opens the source on somebody's behalf."""
        found: dict[str, Any] = {
            "endpoint_url": identity.get("endpoint"),
            "region": identity.get("region"),
            "profile": identity.get("profile"),
            "anonymous": bool(identity.get("anonymous")),
            "requester_pays": bool(identity.get("payer")),
        }
        found.update({name: value for name, value in overrides.items() if value is not None})
        return cls(**found)

    def identity(self, url: str) -> dict[str, Any]:
        """Who reads this URL and through which door; without secrets, so that it may be compared and shown."""
        if not url.startswith("s3://"):
            names = ("endpoint", "region", "profile", "anonymous", "payer", "key")
            return dict.fromkeys(names, None) | {"anonymous": False, "payer": False}
        key = None if self.anonymous else _access_key_id(self.profile)
        return {
            "endpoint": self.endpoint_url,
            "region": self.region,
            "profile": self.profile or os.environ.get("AWS_PROFILE") or None,
            "anonymous": self.anonymous,
            "payer": self.pays_for(url),
            "key": hashlib.blake2s(key.encode(), digest_size=6).hexdigest() if key else None,
        }

    def pays_for(self, url: str) -> bool:
        """Does the reader pay for this bucket: by option, or because the variable's comma list names it."""
        bucket = url.removeprefix("s3://").partition("/")[0]
        named = {
            name.strip().removeprefix("s3://").rstrip("/") for name in os.environ.get(PAYER_VARIABLE, "").split(",")
        }
        return self.requester_pays or (bool(bucket) and bucket in named)


def _access_key_id(profile: str | None) -> str | None:
    """The id of the key that the AWS chain would find first, without its library (0.3 s to import).

    As in that chain a profile that was asked for comes before the variables; AWS_PROFILE does not.
    """
    if profile is None and os.environ.get("AWS_ACCESS_KEY_ID"):
        return os.environ["AWS_ACCESS_KEY_ID"]
    name = profile or os.environ.get("AWS_PROFILE") or "default"
    places = (
        (os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials", name),
        (os.environ.get("AWS_CONFIG_FILE") or "~/.aws/config", name if name == "default" else f"profile {name}"),
    )
    for path, section in places:
        parser = configparser.RawConfigParser()
        try:
            parser.read(Path(path).expanduser())
        except (configparser.Error, UnicodeDecodeError):
            continue  # botocore will say what is wrong with it
        if parser.has_option(section, "aws_access_key_id"):
            return parser.get(section, "aws_access_key_id").strip()
    return None


OPTION_NAMES = tuple(field.name for field in fields(RemoteOptions))
