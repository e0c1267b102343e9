"""What of the model hub's protocol all downloads share: its files' names and hashes, and a transfer that goes on."""

import hashlib
import logging
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers, tqdm

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Hub:
    """Where to ask, and as whom."""

    endpoint: str = huggingface_hub.constants.ENDPOINT
    """Address of the hub; the environment's HF_ENDPOINT, or the public one."""
    token: str | bool | None = None
    """Access token; None takes HF_TOKEN or the stored login, False takes none."""

    @property
    def has_token(self) -> bool:
        """Whether requests carry a token."""
        return self.token is not False and bool(self.token or huggingface_hub.get_token())


@dataclass(frozen=True)
class RemoteFile:
    """What the hub says about one file of a commit."""

    name: str
    size: int
    """Bytes."""
    sha256: str
    """Of the content, for large files; else empty."""
    git_sha1: str
    """Of the content as a git blob, for small files; else empty."""


def is_unsafe_name(name: str) -> bool:
    """Return whether a file name that a hub gives could lead out of the folder that it is written to."""
    return name.startswith("/") or "\\" in name or any(part in ("", ".", "..") for part in name.split("/"))


def git_sha1(path: Path) -> str:
    """Return the hash of a file's content as a git blob, the only one that the hub gives of small files."""
    # A check of the transfer, not of who made the file.
    blob = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            blob.update(chunk)
    return blob.hexdigest()


def transfer(hub: Hub, url: str, file: RemoteFile, partial: Path) -> None:
    """Download one file into `partial`, going on where an earlier attempt stopped; its content is not checked.

    Raises:
        HfHubHTTPError, HTTPError: the hub refuses or cannot be reached.
        OSError: the disk is full, or the connection broke.
    """
    partial.parent.mkdir(parents=True, exist_ok=True)
    done = partial.stat().st_size if partial.exists() else 0
    if done > file.size:
        partial.unlink()
        done = 0
    if done:
        logger.info("%s: going on at %.2f of %.2f GB", file.name, done / 1e9, file.size / 1e9)
    with open(partial, "ab") as target:
        http_get(
            url,
            target,
            resume_size=done,
            headers=build_hf_headers(token=hub.token),
            expected_size=file.size,
            displayed_filename=file.name,
            tqdm_class=TransferProgress,
        )
        target.flush()
        os.fsync(target.fileno())


class TransferProgress(tqdm):
    """A bar on a terminal; elsewhere a line each ten seconds."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take tqdm's arguments."""
        self._plain = not sys.stderr.isatty()
        self._done = kwargs.get("initial") or 0
        self._size = kwargs.get("total") or 0
        self._label = kwargs.get("desc", "")
        self._logged_s = self._started_s = time.monotonic()
        self._start = self._done
        super().__init__(*args, **(kwargs | {"disable": self._plain}))

    def update(self, n: float | None = 1) -> bool | None:
        """Count `n` more bytes."""
        self._done += int(n or 0)
        now = time.monotonic()
        if self._plain and now - self._logged_s >= 10.0:
            self._logged_s = now
            rate = (self._done - self._start) / (now - self._started_s)
            logger.info("%s: %.2f of %.2f GB, %.1f MB/s", self._label, self._done / 1e9, self._size / 1e9, rate / 1e6)
        return super().update(n)
