"""Copying files to a remote."""

from __future__ import annotations

from streaming.compatibility.transfer import CloudUploader, LocalUploader, S3Uploader

__all__ = [
    "CloudUploader",
    "LocalUploader",
    "S3Uploader",
]
