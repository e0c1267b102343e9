"""The table of stage cuts: which parts of each source video are clips; apart from the stage, since listings read it."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from worldtune.dataset.manifest import CLIP_COLUMNS, manifest_path, read_manifest

STAGE = "cuts"

COLUMNS: dict[str, pa.DataType] = {
    **CLIP_COLUMNS,
    "num_frames": pa.int64(),
    "scene": pa.int64(),
}
"""Columns of the manifest: a row for each part of a video, with the number of the scene that it lies in."""


def read_spans(root: Path, shard: str) -> dict[str, list[tuple[float, float]]]:
    """Return the (start, end) in seconds of each part that is a clip, by the video's key.

    Raises:
        WorldtuneError: there is no manifest of stage cuts for this shard, or it is damaged.
    """
    spans: dict[str, list[tuple[float, float]]] = {}
    rows: list[dict[str, Any]] = read_manifest(manifest_path(root, STAGE, shard), COLUMNS)
    for row in rows:
        found = spans.setdefault(row["source_key"], [])
        if row["status"] == "ok":
            found.append((row["start_s"], row["end_s"]))
    return {key: sorted(found) for key, found in spans.items()}
