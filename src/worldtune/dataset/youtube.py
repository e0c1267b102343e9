"""Downloading one YouTube video by pytubefix: taken up where it stopped, tried again where that may help."""

import errno
import http.client
import logging
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from worldtune.common.errors import WorldtuneError
from worldtune.common.files import sync_files

TIMEOUT_S = 60
WAITS_S = (5.0, 30.0)
"""Seconds before a video is asked for again; there is one try more than waits."""
PIECE_BYTES = 8 << 20
"""Bytes of one request. The servers slow long answers down."""
CHUNK_BYTES = 1 << 18
OWN_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM})
"""Failures of this machine's disk, which say nothing of a video."""
OUTAGES = frozenset({errno.ECONNREFUSED, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTUNREACH})
"""Failures of the network, which say nothing of a video either."""
PASSING_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers that another try may change."""

logger = logging.getLogger(__name__)


class DownloadError(Exception):
    """Why one video could not be downloaded."""


class PassingError(DownloadError):
    """A failure that another try may mend: a connection that broke, a server that is busy."""


def download_video(url: str, folder: Path, name: str) -> Path:
    """Download a video with its sound in the largest size that is offered as one file.

    Args:
        url: the video's page.
        folder: where unfinished files are kept between tries and jobs.
        name: what the file's name begins with.

    Returns:
        The whole file, below `folder`; the caller moves it away.

    Raises:
        DownloadError: it cannot be had.
        OSError: the disk is full or cannot be written.
        WorldtuneError: the library is not installed, or the network cannot be reached.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for wait_s in (*WAITS_S, None):
        try:
            return _try(url, folder, name)
        except PassingError as error:
            if wait_s is None:
                raise DownloadError(f"{error}, {len(WAITS_S) + 1} times") from error
            logger.info("%s: %s; it is asked for again in %g s", url, error, wait_s)
            time.sleep(wait_s)
    raise AssertionError("the last try returns or raises")


def _try(url: str, folder: Path, name: str) -> Path:
    # Imported late: nothing else needs it.
    try:
        from pytubefix import YouTube
        from pytubefix.exceptions import PytubeFixError
    except ImportError as error:
        raise WorldtuneError("pytubefix is not installed. Run `make setup`.") from error
    try:
        stream = YouTube(url).streams.get_highest_resolution()
        if stream is None:
            raise DownloadError("no stream that has picture and sound in one file")
        return _transfer(stream, folder, name)
    # The last four are what the library ends in where a page is not as it expects.
    except (
        OSError,
        PytubeFixError,
        http.client.HTTPException,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
    ) as error:
        if isinstance(error, OSError) and error.errno in OWN_ERRORS:
            raise
        if is_outage(error):
            raise WorldtuneError(
                f"{url} cannot be asked for, since the network cannot be reached ({_one_line(error)}). Mend that and "
                "start the same snakemake command again; no video was marked as failed for it."
            ) from error
        raise (PassingError if _may_pass(error) else DownloadError)(_one_line(error)) from error


def _transfer(stream: Any, folder: Path, name: str) -> Path:
    """Bring a stream of pytubefix to a file that is named after its format and size, and return that."""
    size = int(stream.filesize)
    # Another format or another upload is another file, which nothing can be appended to.
    partial = folder / f"{name}.{stream.itag}.{size}.part"
    for other in folder.glob(f"{name}.*.part"):
        if other != partial:
            other.unlink()
    if stream.is_sabr:
        # Answers of this protocol have no addresses of bytes, so it starts anew each time.
        stream.download(
            output_path=str(folder), filename=partial.name, skip_existing=False, timeout=TIMEOUT_S, max_retries=2
        )
    else:
        _append_missing(stream.url, partial, size)
    # The library takes a part that is not found for the end.
    found = partial.stat().st_size
    if not found or found != size:
        partial.unlink()
        raise DownloadError(f"{found} of {size} bytes have arrived")
    sync_files([partial])
    return partial


def _append_missing(url: str, partial: Path, size: int) -> None:
    """Append to a file what it lacks of `size` bytes, piece by piece; the end of what the server has ends it."""
    with open(partial, "ab") as file:
        if file.tell():
            logger.info("%s: going on at %d of %d bytes", partial.name, file.tell(), size)
        while file.tell() < size:
            start = file.tell()
            end = min(start + PIECE_BYTES, size) - 1
            request = urllib.request.Request(
                url, headers={"Range": f"bytes={start}-{end}", "User-Agent": "Mozilla/5.0"}
            )
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                if start and answer.status != http.client.PARTIAL_CONTENT:
                    file.truncate(0)
                while chunk := answer.read(CHUNK_BYTES):
                    file.write(chunk)
            if file.tell() <= start:
                return


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, urllib.error.HTTPError):
        return error.code in PASSING_STATUSES
    reason = getattr(error, "reason", None)
    broken = (TimeoutError, ConnectionError, http.client.IncompleteRead, http.client.RemoteDisconnected)
    return isinstance(error, broken) or isinstance(reason, broken)


def is_outage(error: BaseException | None) -> bool:
    """Whether an error is one of the network as a whole, or comes from such a one."""
    if not isinstance(error, BaseException):
        return False
    if isinstance(error, socket.gaierror) or (isinstance(error, OSError) and error.errno in OUTAGES):
        return True
    # A URLError has what it comes from as its reason.
    return any(is_outage(origin) for origin in (error.__cause__ or error.__context__, getattr(error, "reason", None)))


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
