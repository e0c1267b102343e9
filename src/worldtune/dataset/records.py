"""Tables that people give: .csv, .jsonl and .parquet, read row by row with the place of each for messages."""

import csv
import json
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from worldtune.common.errors import WorldtuneError
from worldtune.common.words import MAX_SHOWN, shown

ROWS_AT_ONCE = 1024
"""Rows of a parquet file that are in memory at once."""


def read_records(
    path: Path, columns: Collection[str], *, what: str, others_are_errors: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, record) for each row of a table; the place is "line 3" or, in a parquet file, "row 3".

    Args:
        path: a file whose name ends in .csv, .jsonl or .parquet.
        columns: names of the columns that are read; a table need not have each.
        what: the file's part in the dataset, for messages.
        others_are_errors: whether a column of another name is a mistake; it is passed over else.

    Raises:
        WorldtuneError: the file is missing, damaged or has a wrong column; the message names the place.
    """
    reader = {".csv": _csv_records, ".parquet": _parquet_records}.get(path.suffix, _json_records)
    try:
        for place, record in reader(path, columns):
            if others_are_errors:
                _check_columns(f"{path}, {place}", record, columns)
            yield place, {key: value for key, value in record.items() if key in columns}
    except FileNotFoundError as error:
        raise WorldtuneError(f"{path} does not exist; it is {what}. Mend the path.") from error
    except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
        raise WorldtuneError(f"{path}, {what}, cannot be read: {str(error)[:MAX_SHOWN]}.") from error


def _check_columns(where: str, names: Iterable[Any], columns: Collection[str]) -> None:
    unknown = sorted(str(name) for name in names if name not in columns)
    if unknown:
        raise WorldtuneError(f"{where}: unknown column {shown(unknown[0])}; expected {', '.join(sorted(columns))}.")


def _csv_records(path: Path, columns: Collection[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        for record in reader:
            if None in record or None in record.values():
                raise WorldtuneError(f"{path}, line {reader.line_num}: it has more or fewer cells than the head.")
            yield f"line {reader.line_num}", dict(record)


def _json_records(path: Path, columns: Collection[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise WorldtuneError(f"{path}, line {number} is no JSON ({error}).") from error
            if not isinstance(record, dict):
                raise WorldtuneError(f"{path}, line {number} is no JSON object.")
            yield f"line {number}", record


def _parquet_records(path: Path, columns: Collection[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        # What is not wanted may be whole videos: it is named in the records, but never read.
        wanted = [name for name in names if name in columns]
        others = dict.fromkeys(name for name in names if name not in columns)
        number = 0
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=wanted):
            for record in batch.to_pylist():
                number += 1
                yield f"row {number}", {**record, **others}
