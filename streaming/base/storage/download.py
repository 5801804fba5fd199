"""Copying files from a remote."""

from __future__ import annotations

from streaming.compatibility.transfer import CloudDownloader, LocalDownloader, S3Downloader, download_file

__all__ = [
    "CloudDownloader",
    "LocalDownloader",
    "S3Downloader",
    "download_file",
]
