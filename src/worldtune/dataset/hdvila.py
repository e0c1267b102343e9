"""The metadata of HD-VILA: which YouTube spans the dataset is made of."""

import os
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from worldtune.common.disk import disk_error_number
from worldtune.common.errors import WorldtuneError
from worldtune.common.files import link_or_copy

REPOSITORY = "TempoFunk/hdvila-100M"
FILE = "hdvila-100M.jsonl"


def fetch_metadata(target: Path) -> None:
    """Download the metadata (one JSON object a line) to `target`; an interrupted download is taken up again.

    Raises:
        WorldtuneError: the hub cannot be reached or refuses.
        OSError: the disk is full or cannot be written.
    """
    try:
        # Beside the declared output, since Snakemake deletes that one before it tries again.
        kept = hf_hub_download(REPOSITORY, FILE, repo_type="dataset", local_dir=target.parent / "hub")
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        number = disk_error_number(error)
        if number is not None:
            raise OSError(number, os.strerror(number), str(target)) from error
        raise WorldtuneError(
            f"{FILE} of the dataset {REPOSITORY} cannot be downloaded: {error}. Check the network and try again; "
            "what has arrived is kept."
        ) from error
    link_or_copy(Path(kept), target)
