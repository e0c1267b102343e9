"""Sizes of pages, against files whose pages are known."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from worldtune.formats.parquet_pages import Chunk, bytes_to_read, read_chunks, read_pages

VALUES = [np.random.default_rng(number).bytes(500) * 2 for number in range(20)]


def write(path: Path, **options: object) -> Path:
    pq.write_table(pa.table({"a": pa.array(VALUES, pa.binary()), "b": list(range(20))}), path, **options)
    return path


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_pages_are_those_that_were_written(tmp_path: Path, version: str, compression: str) -> None:
    options = {"data_page_version": version, "compression": compression, "use_dictionary": False, "data_page_size": 1}
    with open(write(tmp_path / "a.parquet", write_batch_size=5, **options), "rb") as file:
        pages = list(read_pages(file, read_chunks(file)[0][0]))
    assert [page.num_values for page in pages] == [5, 5, 5, 5]
    assert all(5 * 1004 <= page.size <= 5 * 1004 + 20 for page in pages)
    assert all((page.stored_size == page.size) == (compression == "none") for page in pages)
    assert not any(page.is_dictionary for page in pages)


def test_memory_is_that_of_the_largest_pages(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    small = write(path, compression="none", write_batch_size=1, data_page_size=1, use_dictionary=False)
    assert 3000 <= bytes_to_read(small, ["a"]) < 3200
    whole = write(path, compression="none", use_dictionary=False)
    assert 41000 <= bytes_to_read(whole, ["a"]) < 41500
    # The values of a dictionary are copied out of its page.
    dictionary = write(path, compression="none")
    assert 40000 <= bytes_to_read(dictionary, ["a"]) < 41500
    assert bytes_to_read(dictionary, ["b"]) < 1000
    halves = write(path, compression="none", row_group_size=10)
    assert 20000 <= bytes_to_read(halves, ["a"]) < 21500


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"\x00" * 8, "has no size"),
        (b"\x15\x00\x15\x02\x15\x01\x00", "leads out of it"),
        (b"\x15\x00\x15" + b"\xff" * 12, "without end"),
        (b"\x1c" * 20, "nested too deeply"),
        (b"\x1d" * 20, "field of kind 13"),
        (b"\x19\xf5\xff\xff\xff\x7f", "a list of"),
        (b"\x18\xff\xff\xff\xff\x7f", "a text of"),
        (b"\x15", "cut off"),
    ],
)
def test_damaged_headers_are_told(header: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(read_pages(io.BytesIO(bytes(4) + header), Chunk(column="a", start=4, num_bytes=100)))


@pytest.mark.parametrize(("compression", "dictionary"), [("none", False), ("zstd", True), ("snappy", ["b"])])
def test_chunks_lie_where_the_library_has_them(tmp_path: Path, compression: str, dictionary: bool | list[str]) -> None:
    nested = pa.array([{"bytes": value, "path": "x" * 2000} for value in VALUES])
    table = pa.table({"video": nested, "b": list(range(20)), "c": [0.5] * 20, "d": [[True], [False]] * 10})
    path = tmp_path / "a.parquet"
    options = {"compression": compression, "use_dictionary": dictionary, "write_page_index": True}
    pq.write_table(table, path, row_group_size=7, **options)
    metadata = pq.ParquetFile(path).metadata
    expected = []
    for group in range(metadata.num_row_groups):
        columns = [metadata.row_group(group).column(number) for number in range(metadata.num_columns)]
        expected.append(
            [
                Chunk(
                    column=column.path_in_schema.split(".")[0],
                    start=column.dictionary_page_offset if column.has_dictionary_page else column.data_page_offset,
                    num_bytes=column.total_compressed_size,
                )
                for column in columns
            ]
        )
    with open(path, "rb") as file:
        assert read_chunks(file) == expected


@pytest.mark.parametrize(
    ("footer", "message"),
    [
        (b"", "no footer"),
        (b"\xff\xff\xff\xffPAR1", "longer than the file"),
        (b"\x45\x02\x00\x03\x00\x00\x00PAR1", "where a list belongs"),
        (b"\x49\x1c\x19\x1c\x00\x00\x00\x07\x00\x00\x00PAR1", "lacks the facts"),
        (b"\x49\x1c\x19\x1c\x3c\x00\x00\x00\x00\x09\x00\x00\x00PAR1", "without name"),
        (b"\x49\x1c\x19\x1c\x3c\x39\x18\x01a\x00\x00\x00\x00\x0d\x00\x00\x00PAR1", "without place"),
    ],
)
def test_damaged_footers_are_told(footer: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_chunks(io.BytesIO(footer))
