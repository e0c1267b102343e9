"""How much memory it takes to read columns of a parquet file: known from the headers of its pages, unread.

A reader holds whole pages, however few rows it is asked for: a page as it is stored, once more where it is compressed,
and the values of a dictionary a second time. Writers begin a new page only after some 1000 rows, so that a page of
videos can have a gigabyte. PyArrow tells the sizes of column chunks, not of pages; the headers (struct PageHeader in
parquet.thrift, in Thrift's compact protocol) lie between them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pyarrow.parquet as pq

MAX_VARINT_BYTES = 10
MAX_TEXT_BYTES = 2**31
"""Largest text of a header that is passed over: the least and largest value of a page are in it."""
MAX_DEPTH = 8
"""Structs within structs in a header; the format has three."""
# Fields of PageHeader, and the one that its three kinds of further header begin with.
TYPE, SIZE, STORED_SIZE = 1, 2, 3
FURTHER_HEADERS = (5, 7, 8)
NUM_VALUES = 1
DICTIONARY_PAGE = 2

Fields = dict[int, "int | Fields"]


@dataclass(frozen=True, kw_only=True)
class Page:
    """What a page's header says."""

    is_dictionary: bool
    size: int
    """Bytes once decompressed."""
    stored_size: int
    """Bytes in the file."""
    num_values: int

    @property
    def bytes_to_read(self) -> int:
        """About the memory that a reader needs for it and for one of its values."""
        copies = self.size if self.is_dictionary else self.size // max(self.num_values, 1)
        # As it is stored it goes before the values of a dictionary are copied.
        return self.size + (max(copies, self.stored_size) if self.is_dictionary else self.stored_size + copies)


def bytes_to_read(path: Path, metadata: pq.FileMetaData, columns: Sequence[str]) -> int:
    """Return about how much memory it takes to read some columns of a parquet file row by row.

    Args:
        path: the file.
        metadata: what its footer says.
        columns: names of top-level columns.

    Returns:
        Bytes, of the row group that needs most.

    Raises:
        ValueError: a page's header is damaged.
        OSError: the file cannot be read.
    """
    most = 0
    with open(path, "rb") as file:
        for group in range(metadata.num_row_groups):
            row_group = metadata.row_group(group)
            needed = 0
            for number in range(row_group.num_columns):
                chunk = row_group.column(number)
                if chunk.path_in_schema.split(".")[0] in columns:
                    needed += _chunk_bytes(file, chunk)
            most = max(most, needed)
    return most


def _chunk_bytes(file: BinaryIO, chunk: pq.ColumnChunkMetaData) -> int:
    # A dictionary stays as long as the chunk is read, other pages go one after the other.
    largest = {True: 0, False: 0}
    for page in read_pages(file, chunk):
        largest[page.is_dictionary] = max(largest[page.is_dictionary], page.bytes_to_read)
    return sum(largest.values())


def read_pages(file: BinaryIO, chunk: pq.ColumnChunkMetaData) -> Iterator[Page]:
    """Yield the pages of a column chunk, reading their headers only.

    Raises:
        ValueError: a header is damaged.
        OSError: the file cannot be read.
    """
    starts = [chunk.data_page_offset, *([chunk.dictionary_page_offset] if chunk.has_dictionary_page else [])]
    position = min(start for start in starts if start is not None)
    end = position + chunk.total_compressed_size
    while position < end:
        file.seek(position)
        header = _read_struct(file, MAX_DEPTH)
        size, stored_size = header.get(SIZE), header.get(STORED_SIZE)
        further = next((value for field in FURTHER_HEADERS if isinstance(value := header.get(field), dict)), {})
        num_values = further.get(NUM_VALUES, 0)
        if not isinstance(size, int) or not isinstance(stored_size, int) or not isinstance(num_values, int):
            raise ValueError(f"the page at byte {position} has no size")
        if min(size, stored_size, num_values) < 0 or file.tell() + stored_size > end:
            raise ValueError(f"the page at byte {position} has a size of {stored_size} bytes, which leads out of it")
        yield Page(
            is_dictionary=header.get(TYPE) == DICTIONARY_PAGE,
            size=size,
            stored_size=stored_size,
            num_values=num_values,
        )
        position = file.tell() + stored_size


def _read_struct(file: BinaryIO, depth: int) -> Fields:
    """Read a struct of Thrift's compact protocol; texts and floating-point numbers are passed over."""
    if not depth:
        raise ValueError("a page's header is nested too deeply")
    fields: Fields = {}
    number = 0
    while True:
        [head] = _read(file, 1)
        if head == 0:
            return fields
        kind = head & 0x0F
        number = number + (head >> 4) if head >> 4 else _read_signed(file)
        if kind in (1, 2):
            fields[number] = 2 - kind
        elif kind == 3:
            _read(file, 1)
        elif kind in (4, 5, 6):
            fields[number] = _read_signed(file)
        elif kind == 7:
            _read(file, 8)
        elif kind == 8:
            length = _read_varint(file)
            if length > MAX_TEXT_BYTES:
                raise ValueError(f"a page's header has a text of {length} bytes")
            file.seek(length, 1)
        elif kind == 12:
            fields[number] = _read_struct(file, depth - 1)
        else:
            raise ValueError(f"a page's header has a field of kind {kind}, which none has")


def _read_signed(file: BinaryIO) -> int:
    value = _read_varint(file)
    return (value >> 1) ^ -(value & 1)


def _read_varint(file: BinaryIO) -> int:
    value = 0
    for position in range(MAX_VARINT_BYTES):
        [byte] = _read(file, 1)
        value |= (byte & 0x7F) << (7 * position)
        if byte < 0x80:
            return value
    raise ValueError("a page's header has a number without end")


def _read(file: BinaryIO, num_bytes: int) -> bytes:
    data = file.read(num_bytes)
    if len(data) < num_bytes:
        raise ValueError("a page's header is cut off")
    return data
