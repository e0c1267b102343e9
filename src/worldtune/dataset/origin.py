"""Where a downloaded dataset comes from: the repository and its commit, for the provenance of what is trained on it."""

from pathlib import Path

from worldtune.dataset.config import DatasetConfig
from worldtune.dataset.hdvila import REPOSITORY, recorded_commit
from worldtune.dataset.repository import LIST_FILE, read_list


def read_origin(source: Path, config: DatasetConfig) -> dict[str, str]:
    """Return the repository and the commit of what a dataset was downloaded from.

    Args:
        source: the dataset's source folder.
        config: its configuration.

    Returns:
        {"repository", "commit"}; empty for datasets that were not downloaded, and where the commit is not recorded.

    Raises:
        WorldtuneError: the record of the commit is damaged, or the list of the repository is missing.
    """
    if config.kind == "huggingface":
        repository, commit, _ = read_list(source / LIST_FILE)
        return {"repository": repository, "commit": commit}
    recorded = recorded_commit(source) if config.kind == "hdvila" else None
    return {"repository": REPOSITORY, "commit": recorded} if recorded else {}
