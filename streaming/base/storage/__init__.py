"""Copying files from and to a remote."""

from __future__ import annotations

from streaming.compatibility.transfer import (
    CloudDownloader,
    CloudUploader,
    LocalDownloader,
    LocalUploader,
    S3Downloader,
    S3Uploader,
    download_file,
)

__all__ = [
    "CloudDownloader",
    "CloudUploader",
    "LocalDownloader",
    "LocalUploader",
    "S3Downloader",
    "S3Uploader",
    "download_file",
]
