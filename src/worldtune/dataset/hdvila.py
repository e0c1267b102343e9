"""The metadata of HD-VILA: which YouTube spans the dataset is made of, at one commit of their repository.

Which commit that is the first download asks, and records it in source/hub/commit.json. Snakemake knows nothing of that
file, so that a repeated download brings the same metadata; to take newer ones, delete it.
"""

import logging
import os
import re
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError

from worldtune.common.disk import disk_error_number
from worldtune.common.errors import WorldtuneError
from worldtune.common.files import link_or_copy, read_json, write_json

REPOSITORY = "TempoFunk/hdvila-100M"
FILE = "hdvila-100M.jsonl"
REVISION = "main"
"""Branch whose commit the first download records."""
STORE = "hub"
COMMIT_FILE = "commit.json"
COMMIT_PATTERN = re.compile(r"[0-9a-f]{40}")

logger = logging.getLogger(__name__)


def fetch_metadata(target: Path) -> None:
    """Download the metadata (one JSON object a line) to `target`; an interrupted download is taken up again.

    Raises:
        WorldtuneError: the hub cannot be reached or refuses, or the record of the commit is damaged.
        OSError: the disk is full or cannot be written.
    """
    # Beside the declared output, since Snakemake deletes that one before it tries again.
    store = target.parent / STORE
    try:
        commit = recorded_commit(target.parent) or _record_commit(store / COMMIT_FILE)
        kept = hf_hub_download(REPOSITORY, FILE, repo_type="dataset", revision=commit, local_dir=store)
    except (HfHubHTTPError, HTTPError, LocalEntryNotFoundError, OSError) as error:
        number = disk_error_number(error)
        if number is not None:
            raise OSError(number, os.strerror(number), str(target)) from error
        raise WorldtuneError(
            f"{FILE} of the dataset {REPOSITORY} cannot be downloaded: {error}. Check the network and try again; "
            "what has arrived is kept."
        ) from error
    link_or_copy(Path(kept), target)


def recorded_commit(source: Path) -> str | None:
    """Return the commit that a dataset's metadata are of; None where none was fetched, or before commits were recorded.

    Args:
        source: the dataset's source folder.

    Raises:
        WorldtuneError: the record is damaged.
    """
    path = source / STORE / COMMIT_FILE
    if not path.exists():
        return None
    record = read_json(path)
    commit = record.get("commit") if isinstance(record, dict) else None
    if not isinstance(commit, str) or not COMMIT_PATTERN.fullmatch(commit):
        raise WorldtuneError(f"{path} names no commit (40 hexadecimal digits). Delete it and fetch them again.")
    return commit


def _record_commit(path: Path) -> str:
    """Ask which commit the branch has now, and record it before anything of it is fetched."""
    commit = HfApi().dataset_info(REPOSITORY, revision=REVISION, timeout=60.0).sha
    if not commit or not COMMIT_PATTERN.fullmatch(commit):
        raise WorldtuneError(f"The hub does not say which commit {REPOSITORY} has at {REVISION}. Try again later.")
    write_json(path, {"repository": REPOSITORY, "revision": REVISION, "commit": commit})
    logger.warning(
        "%r of %s is commit %s now; it is recorded in %s and followed from now on", REVISION, REPOSITORY, commit, path
    )
    return commit
