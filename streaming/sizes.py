"""Sizes as people write them: one parser for every option and argument that takes bytes.

Suffixes are powers of 1024 whatever their spelling (`64mb`, `64MB`, `64MiB`, `64m` are the same), as MDS writers have
always read them. Bare digits are bytes.
"""

from __future__ import annotations

import re

__all__ = ["format_size", "parse_size"]

_UNITS = "kmgtpezy"
_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(?:([kmgtpezy])(?:i?b)?|b)?\s*", re.IGNORECASE | re.ASCII)


def parse_size(text: str | int) -> int:
    """Bytes of `64mb`, `1.5 GiB`, `4096`; fractions are cut off. Raises ValueError naming the text."""
    if isinstance(text, int):
        if text < 0:
            raise ValueError(f"expected a size like 64mb or 10GiB, got {text}")
        return text
    match = _SIZE.fullmatch(text)
    if not match:
        raise ValueError(f"expected a size like 64mb or 10GiB, got {text!r}")
    number, unit = match.groups()
    factor = 1024 ** (_UNITS.index(unit.lower()) + 1) if unit else 1
    return int(number) * factor if number.isdigit() else int(float(number) * factor)


def format_size(size: float) -> str:
    """A size for people: three digits or so, and a binary unit (`1.50 GiB`)."""
    value, unit = float(size), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if abs(value) < 1024 or unit == "PiB":
            break
        value /= 1024
    if unit == "B":
        return f"{int(value)} B"
    return f"{value:.{2 if abs(value) < 10 else 1 if abs(value) < 100 else 0}f} {unit}"
