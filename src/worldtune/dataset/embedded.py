"""Parquet files that hold videos as bytes, as the `datasets` library writes them."""

import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from worldtune.common.files import atomic_path
from worldtune.dataset.clips import VIDEO_SUFFIXES
from worldtune.formats.parquet_pages import bytes_to_read

VIDEO_COLUMN = "video"
UNPACKED_NAME = re.compile(rf"\d{{6,}}({'|'.join(map(re.escape, sorted(VIDEO_SUFFIXES)))})")
READ_BUFFER_BYTES = 1 << 20
"""What is read of the file at once. Without it the reader begins with a whole row group."""
MAX_BYTES_TO_READ = 3 * 2**30
"""Memory that the reader of a file may take; rules/dataset.smk gives the job as much, since it reads one at a time."""


class ParquetError(Exception):
    """Why a parquet file gives no videos."""


def unpack(path: Path, folder: Path, stem: str, caption_column: str) -> Iterator[dict[str, Any]]:
    """Write the videos of a parquet file below `folder` one by one, and yield what each row gives.

    Memory holds the file's largest pages, not its row groups; a file with too large pages is refused unread.

    Args:
        path: the parquet file. Its videos are bytes, or structs of bytes and a path, whose suffix is kept.
        folder: where to write.
        stem: path below `folder` of the videos: STEM/<row>.mp4.
        caption_column: the column of the captions; there may be none.

    Yields:
        {"key": path below `folder`, "caption": text or None, "num_bytes", "reason": why there is no video, or ""}.

    Raises:
        ParquetError: it is damaged, has no rows, no column of videos, or pages that are too large.
        OSError: the disk is full or cannot be read or written.
    """
    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=READ_BUFFER_BYTES) as table:
            column = _video_column(table.schema_arrow)
            has_caption = caption_column in table.schema_arrow.names
            columns = [column, *([caption_column] if has_caption else [])]
            if not table.metadata.num_rows:
                raise ParquetError("it has no rows")
            _check_memory(bytes_to_read(path, columns))
            for number, batch in enumerate(table.iter_batches(1, columns=columns)):
                [record] = batch.to_pylist()
                yield _write(folder, f"{stem}/{number:06d}", record[column], record.get(caption_column))
    except (pa.ArrowException, ValueError, OSError) as error:
        # Arrow tells of damaged pages by an OSError without a number; those of the disk have one.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ParquetError(" ".join(str(error).split())) from error
    finally:
        # Its allocator would keep the memory of the largest page in each process that ever read one.
        pa.default_memory_pool().release_unused()


def unpacked(folder: Path, stem: str) -> list[str]:
    """Return the paths below `folder` of the videos that are there out of parquet files of this name, sorted."""
    try:
        names = sorted(os.listdir(folder / stem))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [f"{stem}/{name}" for name in names if UNPACKED_NAME.fullmatch(name)]


def _check_memory(needed: int) -> None:
    if needed > MAX_BYTES_TO_READ:
        raise ParquetError(
            f"its pages are so large that reading them takes {needed / 2**30:.1f} GB of memory, more than the "
            f"{MAX_BYTES_TO_READ / 2**30:g} GB that there are. Write the table with fewer rows a row group (the "
            "`datasets` library does so by itself; with PyArrow: row_group_size), and put it into a repository of yours"
        )


def _write(folder: Path, stem: str, video: Any, caption: Any) -> dict[str, Any]:
    content = video.get("bytes") if isinstance(video, dict) else video
    given = str(video.get("path") or "") if isinstance(video, dict) else ""
    suffix = posixpath.splitext(given)[1].lower()
    key = stem + (suffix if suffix in VIDEO_SUFFIXES else ".mp4")
    clip = {"key": key, "caption": caption, "num_bytes": len(content or b""), "reason": ""}
    if caption is not None and not isinstance(caption, str):
        return clip | {"caption": None, "reason": f"no caption: it is a {type(caption).__name__}, not a text"}
    if not content:
        return clip | {"reason": "no video: its row of the parquet file has no bytes"}
    with atomic_path(folder / key) as temporary:
        temporary.write_bytes(content)
    return clip


def _video_column(schema: pa.Schema) -> str:
    candidates = [field.name for field in schema if _holds_videos(field.type)]
    if VIDEO_COLUMN in candidates:
        return VIDEO_COLUMN
    if len(candidates) != 1:
        raise ParquetError(
            f"expected a column {VIDEO_COLUMN!r} of embedded videos (bytes, or structs of bytes and path); it has "
            f"{', '.join(schema.names)}"
        )
    return str(candidates[0])


def _holds_videos(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
