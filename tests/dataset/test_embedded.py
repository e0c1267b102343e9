"""Videos out of parquet files: what memory it takes. What they become is tested with their repositories."""

import resource
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from worldtune.dataset.embedded import ParquetError, unpack

NUM_VIDEOS = 16
VIDEO_BYTES = 2**20


def write(path: Path, num_videos: int = NUM_VIDEOS, **options: object) -> list[bytes]:
    """One row group of videos of a megabyte, in as many pages as the options make."""
    rng = np.random.default_rng(0)
    videos = [rng.bytes(VIDEO_BYTES) for _ in range(num_videos)]
    pq.write_table(pa.table({"video": pa.array(videos, pa.binary())}), path, **options)
    assert pq.ParquetFile(path).metadata.num_row_groups == 1
    return videos


@pytest.mark.parametrize(
    "options", [{"use_content_defined_chunking": True}, {"write_batch_size": 1, "use_dictionary": False}]
)
def test_a_row_group_is_never_whole_in_memory(tmp_path: Path, options: dict[str, object]) -> None:
    videos = write(tmp_path / "a.parquet", **options)
    counted = pa.proxy_memory_pool(usual := pa.default_memory_pool())
    pa.set_memory_pool(counted)
    try:
        rows = list(unpack(tmp_path / "a.parquet", tmp_path / "out", "a", "text"))
    finally:
        pa.set_memory_pool(usual)
    assert [(tmp_path / "out" / row["key"]).read_bytes() for row in rows] == videos
    # A reader that prefetches, as is PyArrow's habit, holds the 16 MiB of the group.
    assert counted.max_memory() < 7 * VIDEO_BYTES


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def test_memory_of_a_large_page_is_given_back(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", 48)
    pa.default_memory_pool().release_unused()
    before = resident_bytes()
    assert len(list(unpack(tmp_path / "a.parquet", tmp_path / "out", "a", "text"))) == 48
    assert resident_bytes() - before < 24 * VIDEO_BYTES


def test_a_page_that_fills_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worldtune.dataset.embedded.MAX_BYTES_TO_READ", 8 * VIDEO_BYTES)
    write(tmp_path / "small.parquet", use_content_defined_chunking=True)
    assert len(list(unpack(tmp_path / "small.parquet", tmp_path / "out", "small", "text"))) == NUM_VIDEOS
    write(tmp_path / "large.parquet", write_batch_size=NUM_VIDEOS)
    with pytest.raises(ParquetError, match="fewer rows a row group"):
        list(unpack(tmp_path / "large.parquet", tmp_path / "out", "large", "text"))
    assert not (tmp_path / "out/large").exists()
