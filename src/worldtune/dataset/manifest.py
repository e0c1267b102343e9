"""A stage's declared output for one shard: a table that has equal bytes for equal content."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from worldtune.common.files import atomic_path
from worldtune.dataset.clips import read_rows

Columns = Mapping[str, pa.DataType]

CLIP_COLUMNS: dict[str, pa.DataType] = {
    "clip_id": pa.string(),
    "source_key": pa.string(),
    "start_s": pa.float64(),
    "end_s": pa.float64(),
    "status": pa.string(),
    "reason": pa.string(),
}
"""Columns that every manifest begins with."""


def manifest_path(root: Path, stage: str, shard: str) -> Path:
    """Return where the manifest of a stage and shard lies."""
    return root / "manifests" / stage / f"{shard}.parquet"


def write_manifest(path: Path, rows: Iterable[dict[str, Any]], columns: Columns) -> None:
    """Write rows, sorted by clip id, whole or not at all; a row has exactly the given columns."""
    ordered = sorted(rows, key=lambda row: row["clip_id"])
    for row in ordered:
        if row.keys() != columns.keys():
            raise ValueError(f"{path}: a row has the columns {sorted(row)}, expected {sorted(columns)}")
    table = pa.Table.from_pylist(ordered, schema=pa.schema(list(columns.items())))
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def retire_manifests(root: Path, stage: str) -> None:
    """Remove the manifests of a stage whose files another one is about to write.

    Otherwise the workflow would take that stage for done when it is asked for again.
    """
    for path in (root / "manifests" / stage).glob("*.parquet"):
        path.unlink(missing_ok=True)


def read_manifest(path: Path, columns: Columns) -> list[dict[str, Any]]:
    """Return the rows of a manifest; errors as read_rows."""
    return read_rows(path, columns)
