"""Errors of the disk, such as a full one: which file could not be written, and what to do."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

FREE_SPACE = (
    "Free space on its disk (`make prune` shows old attempts) and run the same command again; what was finished is "
    "kept."
)
ADVICE = {
    errno.ENOSPC: FREE_SPACE,
    errno.EDQUOT: FREE_SPACE.replace("on its disk", "in your quota"),
    errno.EFBIG: "Raise the limit of this shell (`ulimit -f unlimited`) and run the same command again.",
    errno.EROFS: "Mount its disk for writing, or name a folder that can be written, and run the same command again.",
}
"""What to do, by the numbers of errors that only writing gives."""
ACCESS = "Give your account the right to it (look at `ls -ld` of the file and its folder) and run the command again."
PATH = {
    errno.ENOENT: "Run the command in the repository's root, or correct the path.",
    errno.ENOTDIR: "Expected a folder: a part of this path is a file. Give another path, or move that file away.",
    errno.EISDIR: "Expected a file: this is a folder. Give another path, or move that folder away.",
    errno.EEXIST: "Expected a folder: this is a file. Give another path, or move that file away.",
}
# Libraries written in Rust or around ffmpeg give the error's number or its words, but no OSError.
NUMBER = re.compile(r"\(os error (\d+)\)")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that it was raised from or while handling."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__


def disk_error_number(error: BaseException) -> int | None:
    """Return the number of the disk's error that is behind `error`, a key of ADVICE; None if there is none."""
    numbers = (found.errno if isinstance(found, OSError) else _number_in(str(found)) for found in _chain(error))
    return next((number for number in numbers if number in ADVICE), None)


def _number_in(text: str) -> int | None:
    match = NUMBER.search(text)
    return int(match.group(1)) if match else None


def disk_error_in_words(text: str) -> int | None:
    """Return the number of the disk's error whose words are in what a program printed; None if there are none."""
    return next((number for number in ADVICE if os.strerror(number) in text), None)


@contextlib.contextmanager
def disk_errors_named(path: Path) -> Iterator[None]:
    """Give errors of the disk inside the block the name of the file that is being written.

    Most have none, or that of a temporary file; PyTorch, PyArrow, safetensors and ffmpeg each have errors of their own.

    Raises:
        OSError: writing failed by an error of ADVICE; its filename is `path`.
    """
    try:
        yield
    except Exception as error:
        number = disk_error_number(error)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def disk_advice(error: BaseException) -> str | None:
    """Return what to tell a person about an error of the disk: the file, the system's words, what to do.

    None where `error` is of another kind.
    """
    number = disk_error_number(error)
    if number is None and isinstance(error, OSError):
        number = error.errno
    if number in ADVICE:
        advice = ADVICE[number]
    elif number in (errno.EACCES, errno.EPERM):
        advice = ACCESS
    elif number in PATH and isinstance(error, OSError) and error.filename is not None:
        advice = PATH[number]
    else:
        return None
    names = [found.filename for found in _chain(error) if isinstance(found, OSError) and found.filename is not None]
    return ": ".join([*map(str, names[:1]), f"{os.strerror(number)}. {advice}"])
