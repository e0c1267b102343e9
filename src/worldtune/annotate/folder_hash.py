"""What a network's folder holds, as one digest; folders put there by hand are hashed once, not in each job."""

import contextlib
import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from worldtune.checkpoint.catalogue import FILE_LIST, own_files
from worldtune.common.errors import WorldtuneError
from worldtune.common.files import digest, exclusive, read_json, sha256_file, write_json

logger = logging.getLogger(__name__)

HASHES_FILE, LOCK_FILE = ".hashes.json", ".hashes.lock"
"""Hidden files in the folder: what was hashed before, and the lock of the job that hashes."""
SETTLED_S = 2.0
"""A file that changed this many seconds ago has another time if it changes now; some file systems count seconds."""
FORGOTTEN = "%s: the hashes of its files cannot be remembered there (%s); each job reads all of them"


def missing_folder(folder: Path) -> str:
    """Return the message about a network's folder that does not exist."""
    return (
        f"{folder} does not exist; a network is expected there. Fetch it: `snakemake {folder}/{FILE_LIST}`, or put its "
        "files there."
    )


def folder_sha256(folder: Path) -> str:
    """Return a digest of the files of a network's folder, from its list of hashes where there is one.

    Without a list its files are hashed. What was found is remembered in the folder, by size and times of change to the
    nanosecond, so that only files which changed are read again; a job that comes while another hashes waits for it.
    Where the folder cannot be written, each job reads all.

    Returns:
        64 hexadecimal digits.

    Raises:
        WorldtuneError: the folder is not there or empty.
    """
    if (folder / FILE_LIST).exists():
        return digest(read_json(folder / FILE_LIST))
    if not folder.is_dir():
        raise WorldtuneError(missing_folder(folder))
    files = own_files(folder)
    if not files:
        raise WorldtuneError(
            f"{folder} is empty; a network is expected there. Fetch it: `snakemake {folder}/{FILE_LIST}`."
        )
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(exclusive(folder / LOCK_FILE))
        except OSError as error:
            logger.warning(FORGOTTEN, folder, error)
            return digest({path.name: sha256_file(path) for path in files})
        return digest(_hashes(folder, files))


def _hashes(folder: Path, files: Sequence[Path]) -> dict[str, str]:
    """Return file name -> SHA-256, and remember them; the caller holds the folder's lock."""
    remembered = _read(folder / HASHES_FILE)
    hashes: dict[str, str] = {}
    entries: dict[str, Any] = {}
    for path in files:
        state = _state(path)
        entry = remembered.get(path.name)
        if isinstance(entry, dict) and entry.get("state") == state and isinstance(entry.get("sha256"), str):
            hashes[path.name], entries[path.name] = entry["sha256"], entry
            continue
        logger.info("%s: hashing %.1f GB", path, state[0] / 1e9)
        started = time.time()
        hashes[path.name] = sha256_file(path)
        # A file that changes meanwhile, or so soon after that its times stay equal, is read again by the next job.
        if _state(path) == state and max(state[1:]) / 1e9 < started - SETTLED_S:
            entries[path.name] = {"state": state, "sha256": hashes[path.name]}
    if entries != remembered:
        try:
            write_json(folder / HASHES_FILE, entries)
        except OSError as error:
            logger.warning(FORGOTTEN, folder, error)
    return hashes


def _state(path: Path) -> list[int]:
    """Return size, and times of the last change of content and of anything: the latter cannot be set by programs."""
    found = os.stat(path)
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _read(path: Path) -> dict[str, Any]:
    """Return what is remembered; nothing where that is not there or damaged, since all can be hashed again."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return entries if isinstance(entries, dict) else {}
