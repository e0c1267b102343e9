"""Videos of an earlier commit of a data set repository: those that no row calls usable any more do not stay on disk."""

import logging
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from worldtune.dataset.embedded import unpacked

SHOWN_NAMES = 5

logger = logging.getLogger(__name__)


def remove_replaced(source: Path, rows: Iterable[dict[str, Any]], listed: Collection[str]) -> None:
    """Remove videos of files that were refused, or that hold fewer by now, and log how many.

    Args:
        source: the dataset's source folder.
        rows: what the ledger has of the files, once it has all of them: the rows must outlive the videos.
        listed: names of all files of the repository.

    Raises:
        OSError: a video cannot be removed.
    """
    for row in rows:
        name = row["source_key"]
        if name.endswith(".parquet"):
            # The repository may have a folder of that name itself.
            keys = [key for key in unpacked(source, name.removesuffix(".parquet")) if key not in listed]
        else:
            keys = [name]
        made = {clip["key"] for clip in row["clips"] if not clip["reason"]}
        replaced = [source / key for key in keys if key not in made and (source / key).is_file()]
        for path in replaced:
            path.unlink()
        if replaced:
            why = row["reason"] or "the file holds other ones now"
            logger.warning("%s: %d videos of an earlier commit were removed: %s", name, len(replaced), why)


def tell_of_unlisted(source: Path, rows: Iterable[dict[str, Any]], listed: Collection[str]) -> None:
    """Log which files were fetched at an earlier commit, and are not in the repository's list any more.

    Their videos stay, since the list may name them again after a change of the configuration. Arguments as those of
    `remove_replaced`, with the rows of all files that the ledger knows.
    """
    gone = sorted(row["source_key"] for row in rows if row["source_key"] not in listed and row["clips"])
    if gone:
        more = f" and {len(gone) - SHOWN_NAMES} more" if len(gone) > SHOWN_NAMES else ""
        logger.warning(
            "%d files are not in the list of the repository any more, and their videos are no clips of the dataset; "
            "what they gave is left below %s. Remove it, if the list is to stay so: %s%s",
            *(len(gone), source, ", ".join(gone[:SHOWN_NAMES]), more),
        )
