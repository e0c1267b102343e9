"""The table of videos that were fetched from a data set repository; apart from the stage, since listings read it."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from worldtune.dataset.manifest import CLIP_COLUMNS, manifest_path, read_manifest

STAGE = "fetch_videos"

COLUMNS: dict[str, pa.DataType] = {
    **CLIP_COLUMNS,
    "url": pa.string(),
    "num_bytes": pa.int64(),
    "caption": pa.string(),
}
"""Columns of the manifest: a row for each video, and one for each file of which no video could be had."""


def read_fetched(root: Path, shard: str) -> list[dict[str, Any]]:
    """Return the rows of a shard.

    Raises:
        WorldtuneError: there is no manifest of stage fetch_videos for this shard, or it is damaged.
    """
    return read_manifest(manifest_path(root, STAGE, shard), COLUMNS)
