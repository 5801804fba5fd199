"""Functions beside datasets."""

from __future__ import annotations

from streaming.compatibility.arguments import (
    bytes_to_int,
    get_import_exception_message,
    get_list_arg,
    number_abbrev_to_int,
)
from streaming.compatibility.waiting import clean_stale_shared_memory, retry, wait_for_file_to_exist
from streaming.merge import merge_index

__all__ = [
    "bytes_to_int",
    "clean_stale_shared_memory",
    "get_import_exception_message",
    "get_list_arg",
    "merge_index",
    "number_abbrev_to_int",
    "retry",
    "wait_for_file_to_exist",
]
