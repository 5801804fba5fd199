"""Sizes, counts and lists as text on a command line, and the texts of two messages."""

from __future__ import annotations

__all__ = [
    "bytes_to_int",
    "get_import_exception_message",
    "get_index_basename",
    "get_list_arg",
    "number_abbrev_to_int",
]

_BYTES = {f"{letter}b": 1024 ** (power + 1) for power, letter in enumerate("kmgtpezy")}
_NUMBERS = {"k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}


def get_list_arg(text: str) -> list[str]:
    """The items of a list with commas; none for an empty text."""
    return text.split(",") if text else []


def bytes_to_int(bytes_str: float | str) -> int:
    """Bytes of `64mb`, `100b` or `4096`: suffixes are powers of 1024, in any case; fractions are cut off.

    Raises ValueError. Unlike `streaming.sizes.parse_size` it takes no `64m` and no `64MiB`, as in mosaicml-streaming.
    """
    if isinstance(bytes_str, int | float):
        return int(bytes_str)
    text = bytes_str.lower().strip()
    try:
        if text[-2:] in _BYTES:
            return int(float(text[:-2]) * _BYTES[text[-2:]])
        digits = text.removesuffix("b")
        if digits.isdigit():
            return int(digits)
    except ValueError:
        pass
    raise ValueError(f"Unsupported value/suffix {text}. Supported suffix are {['b', *_BYTES]}.")


def number_abbrev_to_int(abbrev_str: float | str) -> int:
    """The number of `100k`, `1.5m`, `2b` (10⁹), `1t` (10¹²) or `4096`; fractions are cut off. Raises ValueError."""
    if isinstance(abbrev_str, int | float):
        return int(abbrev_str)
    text = abbrev_str.lower().strip()
    try:
        if text[-1:] in _NUMBERS:
            return int(float(text[:-1]) * _NUMBERS[text[-1]])
        if text.isdigit():
            return int(text)
    except ValueError:
        pass
    raise ValueError(f"Unsupported value/suffix {text}. Supported suffix are {list(_NUMBERS)}.")


def get_import_exception_message(package_name: str, extra_deps: str) -> str:
    """What to say when an optional package is not installed; `extra_deps` is the extra that brings it."""
    return (
        f"Streaming was installed without {package_name} support. To use {package_name} related packages with "
        f"Streaming, run `pip install 'mdsfs[{extra_deps}]'`."
    )


def get_index_basename() -> str:
    """The name of every dataset's index."""
    return "index.json"
