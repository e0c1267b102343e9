"""One scheduler a folder, without a lock that outlives it."""

import fcntl
import os
import socket
from pathlib import Path
from typing import IO

from worldtune.common.errors import WorldtuneError


class WorkflowLock:
    """A lock that the kernel drops when its process ends, however it ends.

    Snakemake's own lock stays behind after kill -9 and then asks for `--unlock`, after which two schedulers can
    run; the profile switches it off and this one takes its place.
    """

    def __init__(self, folder: Path) -> None:
        """Name the folder that the lock file lies in; nothing is locked yet."""
        self._path = folder / "worldtune.lock"
        self._file: IO[str] | None = None

    @property
    def held(self) -> bool:
        """Whether this process has the lock."""
        return self._file is not None

    def acquire(self) -> None:
        """Take the lock until the process ends.

        Raises:
            WorldtuneError: another process has it; the message says which.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = open(self._path, "a+", encoding="utf-8")  # noqa: SIM115 - stays open while the lock is held
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "an unknown process"
            file.close()
            raise WorldtuneError(
                f"another snakemake works in this folder: {holder}. Wait for it or stop it; nothing was started."
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        self._file = file

    def release(self) -> None:
        """Give the lock back before the process ends, if it is held."""
        if self._file is not None:
            self._file.close()
            self._file = None


def unlock(root: Path) -> str:
    """Remove what Snakemake's own lock has left in a folder where no snakemake works; returns what was done.

    This workflow's lock ends with its process, so that there is something to remove only where a snakemake ran without
    the profile of the repository.

    Args:
        root: the workflow's folder.

    Raises:
        WorldtuneError: a snakemake works there.
    """
    lock = WorkflowLock(root / ".snakemake")
    lock.acquire()
    left = [path for path in sorted((root / ".snakemake/locks").glob("*.lock")) if path.is_file()]
    for path in left:
        path.unlink()
    if not left:
        return "nothing is locked: the lock of this workflow ends with its process"
    return f"removed {len(left)} locks that a snakemake without the profile left"
