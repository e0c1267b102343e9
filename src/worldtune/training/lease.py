"""One writer a folder, such as an attempt: a file that names the holder and carries its heartbeat.

A holder that is killed leaves the file behind. Another job takes it over at once where it can see that the process is
gone (same boot of the same host, Linux), else when it has seen the same heartbeat for too long; it goes by its own
clock, since those of two hosts may differ. A holder that was cut off for so long finds another token in the file and
must write nothing any more: `Lease.check` says so before everything that is written.
"""

import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from worldtune.common.errors import WorldtuneError
from worldtune.common.files import write_json
from worldtune.training.errors import TemporaryError

LEASE_FILE = "lease.json"
HEARTBEAT_S = 10.0
STALE_S = 60.0
POLL_S = 2.0
logger = logging.getLogger(__name__)


class Lease:
    """The right to write into a folder, renewed by a thread while it is held."""

    def __init__(self, folder: Path, *, heartbeat_s: float = HEARTBEAT_S, stale_s: float = STALE_S) -> None:
        """Take the folder, which need not exist; nothing is acquired yet."""
        self._path = folder / LEASE_FILE
        self._guard = folder / f".{LEASE_FILE}.lock"
        self._heartbeat_s = heartbeat_s
        self._stale_s = stale_s
        self._me: dict[str, Any] = {
            "token": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "boot": _boot(),
            "pid_namespace": _pid_namespace(),
            "pid": os.getpid(),
            "process_start": _process_start(os.getpid()),
            "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
        }
        self._seen: tuple[Any, Any] | None = None
        self._seen_since = 0.0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def try_acquire(self) -> str | None:
        """Take the lease if it is free or its holder is dead.

        Whether a holder on another host is dead shows over several calls.

        Returns:
            None if the lease is held now, else a description of the present holder.
        """
        with self._locked():
            holder = _read(self._path)
            if holder is not None and self._alive(holder):
                return _describe(holder)
            if holder is not None:
                logger.warning("taking over from %s, which is gone", _describe(holder))
            self._write()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()
        return None

    def check(self) -> None:
        """Raise a TemporaryError if another process has taken the lease."""
        holder = _read(self._path)
        if holder is None or holder.get("token") != self._me["token"]:
            other = "nobody" if holder is None else _describe(holder)
            raise TemporaryError(
                f"{self._path} is held by {other}, not by this process any more: it was silent for more than "
                f"{self._stale_s:g} s. This process stops and leaves the folder to the holder."
            )

    def release(self) -> None:
        """Give the lease back, if it is still held."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        with self._locked():
            holder = _read(self._path)
            if holder is not None and holder.get("token") == self._me["token"]:
                self._path.unlink()

    def _beat(self) -> None:
        while not self._ended.wait(self._heartbeat_s):
            try:
                with self._locked():
                    holder = _read(self._path)
                    if holder is None or holder.get("token") != self._me["token"]:
                        return
                    self._write()
            except OSError as error:
                # A network file system may be away for a while; the next beat tries again.
                logger.warning("no heartbeat in %s: %s", self._path, error)

    def _write(self) -> None:
        write_json(self._path, {**self._me, "heartbeat": time.time()})

    def _alive(self, holder: Mapping[str, Any]) -> bool:
        # Host names need not differ (localhost), and the first namespace has the same number everywhere.
        sees_holder = all(holder.get(key) == self._me[key] for key in ("host", "boot", "pid_namespace"))
        # Without /proc nothing is known of any process.
        if sees_holder and self._me["process_start"] is not None:
            return _process_start(int(holder["pid"])) == holder["process_start"]
        seen = (holder["token"], holder["heartbeat"])
        if seen != self._seen:
            self._seen, self._seen_since = seen, time.monotonic()
        return time.monotonic() - self._seen_since < self._stale_s

    @contextmanager
    def _locked(self) -> Iterator[None]:
        # Held for one read and one rename only; the lease itself must outlive a file system that forgets locks.
        self._guard.parent.mkdir(parents=True, exist_ok=True)
        with open(self._guard, "w", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


@contextmanager
def held_lease(folder: Path) -> Iterator[Lease]:
    """Wait in a single process until the lease of a folder is free, and hold it."""
    lease = Lease(folder)
    announced = False
    while (holder := lease.try_acquire()) is not None:
        if not announced:
            announced = True
            logger.info("waiting: %s holds %s", holder, folder)
        time.sleep(POLL_S)
    try:
        yield lease
    finally:
        lease.release()


@contextmanager
def kept_free(folder: Path) -> Iterator[str | None]:
    """Let nobody take the lease of a folder meanwhile; the folder may be renamed.

    Yields:
        None where nobody holds the lease, else a description of its holder, who keeps it.
    """
    lease = Lease(folder)
    with lease._locked():
        holder = _read(lease._path)
        yield _describe(holder) if holder is not None and lease._alive(holder) else None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, dict) or not {"token", "pid", "process_start", "heartbeat"} <= value.keys():
        raise WorldtuneError(f"{path} is no lease of this trainer. Delete it if no job is writing into its folder.")
    return value


def _describe(holder: Mapping[str, Any]) -> str:
    job = f", SLURM job {holder['slurm_job_id']}" if holder.get("slurm_job_id") else ""
    return f"process {holder['pid']} on {holder.get('host')}{job}"


def _pid_namespace() -> str | None:
    # Two containers of one host may have equal host names, but cannot see each other's processes.
    path = Path("/proc/self/ns/pid")
    return os.readlink(path) if path.exists() else None


def _boot() -> str | None:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text(encoding="utf-8").strip() if path.exists() else None


def _process_start(pid: int) -> str | None:
    """Return the kernel's start time of a process, which tells it from a later one with the same id; None if gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the command in parentheses and may hold anything; state is the third field, start the 22nd.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]
