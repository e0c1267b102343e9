"""The records of an attempt as parquet, for pandas and the like; the JSON lines are what they are derived from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from worldtune.common.files import atomic_path
from worldtune.training.metrics import METRICS_FILE, VALIDATION_FILE, flat, read_rows


def write_tables(attempt: Path) -> None:
    """Write metrics.parquet and validation.parquet beside the JSON lines of an attempt, each whole or not at all.

    A table has a row a line, and a column a key: a table within a line, such as `grad_norm_by_group`, has a column for
    each of its entries, `grad_norm_by_group/<group>`. What a line lacks is null, as is a number that is not finite.
    """
    for name in (METRICS_FILE, VALIDATION_FILE):
        rows = [flat(row) for row in read_rows(attempt / name)]
        if not rows:
            continue
        # Rows of an older version may lack a key.
        keys = sorted({key for row in rows for key in row})
        table = pa.table({key: _column([row.get(key) for row in rows]) for key in keys})
        with atomic_path((attempt / name).with_suffix(".parquet")) as temporary:
            pq.write_table(table, temporary)


def _column(values: Sequence[Any]) -> pa.Array:
    # A number is float64 also where all steps lack it; what PyArrow would make of that has no type.
    if all(value is None or isinstance(value, float) for value in values):
        return pa.array(values, type=pa.float64())
    return pa.array(values)


def last_steps(attempt: Path) -> dict[str, int]:
    """Return the last recorded step by kind of numbers, as a tracker names them; kinds without rows are left out."""
    rows = {"train": read_rows(attempt / METRICS_FILE), "held_out": read_rows(attempt / VALIDATION_FILE)}
    return {kind: max(row["step"] for row in found) for kind, found in rows.items() if found}
