"""Files that appear whole or not at all, and their digests."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from worldtune.common.disk import disk_errors_named
from worldtune.common.errors import WorldtuneError

FICLONE = 0x40049409
"""Request to ioctl (linux/fs.h) that makes one file share the blocks of another until either is written."""
SYNC_THREADS = 16
"""Files that are synced at once: a journal writes what waits for it together."""
_SYNCS_ARE_LEFT: ContextVar[bool] = ContextVar("syncs_are_left", default=False)


def canonical_json(value: Any) -> str:
    """Return `value` as JSON that is equal for equal values: sorted keys, no spaces, NaN refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any, length: int = 64) -> str:
    """Return the first `length` hexadecimal digits of the SHA-256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:length]


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's content as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path in the folder of `path`; on success it is synced to disk and renamed to `path`.

    The temporary name keeps the suffix of `path`, since encoders choose a container by it. On an error the temporary
    file is removed and `path` is as it was.

    Raises:
        OSError: the disk is full or cannot be written; its filename is `path`.
    """
    path = Path(path)
    with disk_errors_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
        os.close(descriptor)
        temporary = Path(name)
        try:
            yield temporary
            if not _SYNCS_ARE_LEFT.get():
                _sync(temporary)
            share(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def syncs_left_to_caller() -> Iterator[None]:
    """Within the block `atomic_path` does not wait for the disk: the caller syncs the files before it relies on them.

    A wait for each of many small files takes longer than to make them. A process that is killed loses nothing by it,
    but a machine that loses power may leave a file empty under its final name.
    """
    token = _SYNCS_ARE_LEFT.set(True)
    try:
        yield
    finally:
        _SYNCS_ARE_LEFT.reset(token)


def sync_files(paths: Iterable[Path]) -> None:
    """Wait until the content of some files is on disk.

    Raises:
        OSError: the disk is full or fails; its filename is the file's.
    """
    waiting = list(paths)
    if len(waiting) < 2:
        for path in waiting:
            _sync(path)
        return
    with ThreadPoolExecutor(min(SYNC_THREADS, len(waiting))) as threads:
        for _ in threads.map(_sync, waiting):
            pass


def _sync(path: Path) -> None:
    with disk_errors_named(path), open(path, "rb") as file:
        os.fsync(file.fileno())


def share(path: Path) -> None:
    """Give a file that was just made the mode of any new file.

    mkstemp and safetensors make files that only their owner may read; results are for the whole group.
    """
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a lock file; another process that wants it waits. The kernel releases it with the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        WorldtuneError: the file is missing or is no JSON; the message names it.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WorldtuneError(f"{path} does not exist. Run the rule that makes it (`make why` shows which).") from error
    except (ValueError, RecursionError) as error:
        raise WorldtuneError(f"{path} is no valid JSON ({error}). Delete it and run the rule that makes it.") from error


def copy_file(source: Path, target: Path) -> None:
    """Make `target` a copy of `source` with a mode of its own, whole or not at all.

    This is for the files of others: writing the copy never changes them, nor the other way round. Where the file
    system can share blocks until they are written, the copy takes no room.
    """
    with atomic_path(target) as temporary:
        if not _clone(source, temporary):
            shutil.copyfile(source, temporary)


def _clone(source: Path, target: Path) -> bool:
    """Return whether `target`, an empty file, now shares the blocks of `source`."""
    with open(source, "rb") as original, open(target, "wb") as copy:
        try:
            fcntl.ioctl(copy, FICLONE, original.fileno())
        except OSError:
            return False
    return True


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` a hard link of `source`, or a copy where the file system cannot link; replaces `target` at once.

    This is for files of our own that nobody writes in place, such as stores. A link keeps the mode of `source`, since
    both are one file.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".link.") as folder:
        temporary = Path(folder) / target.name
        try:
            os.link(source, temporary)
        except OSError:
            copy_file(source, target)
            return
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        # Where both names are one file already, rename does nothing and leaves the temporary name.
        os.replace(temporary, target)
