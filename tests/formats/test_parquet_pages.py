"""Sizes of pages, against files whose pages are known."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from worldtune.formats.parquet_pages import bytes_to_read, read_pages

VALUES = [np.random.default_rng(number).bytes(500) * 2 for number in range(20)]


def write(path: Path, **options: object) -> pq.FileMetaData:
    pq.write_table(pa.table({"a": pa.array(VALUES, pa.binary()), "b": list(range(20))}), path, **options)
    return pq.ParquetFile(path).metadata


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_pages_are_those_that_were_written(tmp_path: Path, version: str, compression: str) -> None:
    options = {"data_page_version": version, "compression": compression, "use_dictionary": False, "data_page_size": 1}
    metadata = write(tmp_path / "a.parquet", write_batch_size=5, **options)
    with open(tmp_path / "a.parquet", "rb") as file:
        pages = list(read_pages(file, metadata.row_group(0).column(0)))
    assert [page.num_values for page in pages] == [5, 5, 5, 5]
    assert all(5 * 1004 <= page.size <= 5 * 1004 + 20 for page in pages)
    assert all((page.stored_size == page.size) == (compression == "none") for page in pages)
    assert not any(page.is_dictionary for page in pages)


def test_memory_is_that_of_the_largest_pages(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    small = write(path, compression="none", write_batch_size=1, data_page_size=1, use_dictionary=False)
    assert 3000 <= bytes_to_read(path, small, ["a"]) < 3200
    whole = write(path, compression="none", use_dictionary=False)
    assert 41000 <= bytes_to_read(path, whole, ["a"]) < 41500
    # The values of a dictionary are copied out of its page.
    dictionary = write(path, compression="none")
    assert 40000 <= bytes_to_read(path, dictionary, ["a"]) < 41500
    assert bytes_to_read(path, dictionary, ["b"]) < 1000
    halves = write(path, compression="none", row_group_size=10)
    assert 20000 <= bytes_to_read(path, halves, ["a"]) < 21500


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"\x00" * 8, "has no size"),
        (b"\x15\x00\x15\x02\x15\x01\x00", "leads out of it"),
        (b"\x15\x00\x15" + b"\xff" * 12, "without end"),
        (b"\x1c" * 20, "nested too deeply"),
        (b"\x19" * 20, "field of kind 9"),
        (b"\x18\xff\xff\xff\xff\x7f", "a text of"),
        (b"\x15", "cut off"),
    ],
)
def test_damaged_headers_are_told(tmp_path: Path, header: bytes, message: str) -> None:
    chunk = write(tmp_path / "a.parquet").row_group(0).column(0)
    start = min(chunk.data_page_offset, chunk.dictionary_page_offset)
    with pytest.raises(ValueError, match=message):
        list(read_pages(io.BytesIO(bytes(start) + header), chunk))
