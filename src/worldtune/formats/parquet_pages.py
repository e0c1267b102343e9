"""How much memory it takes to read columns of a parquet file: known from the headers of its pages, unread.

A reader holds whole pages, however few rows it is asked for: a page as it is stored, once more where it is compressed,
and the values of a dictionary a second time. Writers begin a new page only after some 1000 rows, so that a page of
videos can have a gigabyte. PyArrow tells the sizes of column chunks, not of pages; the headers (struct PageHeader in
parquet.thrift, in Thrift's compact protocol) lie between them. Where the chunks lie is read from the footer (struct
FileMetaData) as well, since PyArrow 26 ends the process where a damaged file's statistics of a chunk do not agree.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

MAX_VARINT_BYTES = 10
MAX_TEXT_BYTES = 2**31
"""Largest text of a header that is passed over: the least and largest value of a page are in it."""
MAX_NAME_BYTES = 1000
"""Longest text that is kept, such as the name of a column."""
MAX_DEPTH = 8
"""Structs within structs; pages' headers have three, the footer six."""
MAX_ITEMS = 1_000_000
"""Most items of a list, as PyArrow has it."""
FOOTER_END_BYTES = 8
"""The footer's length, and the letters PAR1."""
# Fields of FileMetaData, RowGroup, ColumnChunk and ColumnMetaData.
ROW_GROUPS = 4
COLUMNS = 1
META_DATA = 3
PATH, CHUNK_BYTES, DATA_OFFSET, DICTIONARY_OFFSET = 3, 7, 9, 11
# Fields of PageHeader, and the one that its three kinds of further header begin with.
TYPE, SIZE, STORED_SIZE = 1, 2, 3
FURTHER_HEADERS = (5, 7, 8)
NUM_VALUES = 1
DICTIONARY_PAGE = 2

Fields = dict[int, Any]
"""Of a struct: numbers, short texts as bytes, lists and further structs, by the numbers of their fields."""


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Where a column of a row group lies."""

    column: str
    """Name of the top-level column."""
    start: int
    """Byte of the file at which its first page begins."""
    num_bytes: int


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


def bytes_to_read(path: Path, columns: Sequence[str]) -> int:
    """Return about how much memory it takes to read some columns of a parquet file row by row.

    Args:
        path: the file.
        columns: names of top-level columns.

    Returns:
        Bytes, of the row group that needs most.

    Raises:
        ValueError: the footer or a page's header is damaged.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        groups = read_chunks(file)
        return max(
            (sum(_chunk_bytes(file, chunk) for chunk in group if chunk.column in columns) for group in groups),
            default=0,
        )


def read_chunks(file: BinaryIO) -> list[list[Chunk]]:
    """Return the column chunks of each row group of a parquet file.

    Raises:
        ValueError: the footer is damaged.
        OSError: the file cannot be read.
    """
    size = file.seek(0, os.SEEK_END)
    if size < FOOTER_END_BYTES:
        raise ValueError("it has no footer")
    file.seek(size - FOOTER_END_BYTES)
    start = size - FOOTER_END_BYTES - int.from_bytes(_read(file, 4), "little")
    if start < 0:
        raise ValueError("its footer is longer than the file")
    file.seek(start)
    footer = _read_struct(file, MAX_DEPTH)
    return [
        [_chunk(_struct(column, META_DATA)) for column in _structs(group, COLUMNS)]
        for group in _structs(footer, ROW_GROUPS)
    ]


def _chunk(fields: Fields) -> Chunk:
    path = fields.get(PATH)
    starts = [fields[field] for field in (DATA_OFFSET, DICTIONARY_OFFSET) if field in fields]
    # Some writers give 0 where there is no dictionary.
    places = [start for start in starts if isinstance(start, int) and start > 0]
    num_bytes = fields.get(CHUNK_BYTES)
    if not isinstance(path, list) or not path or not isinstance(path[0], bytes):
        raise ValueError("the footer has a column without name")
    if not places or not isinstance(num_bytes, int) or num_bytes < 0:
        raise ValueError("the footer has a column without place")
    return Chunk(column=path[0].decode(errors="replace"), start=min(places), num_bytes=num_bytes)


def _structs(fields: Fields, field: int) -> list[Fields]:
    items = fields.get(field, [])
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ValueError("the footer has something else where a list belongs")
    return [item for item in items if isinstance(item, dict)]


def _struct(fields: Fields, field: int) -> Fields:
    value = fields.get(field)
    if not isinstance(value, dict):
        raise ValueError("the footer lacks the facts of a column")
    return value


def _chunk_bytes(file: BinaryIO, chunk: Chunk) -> int:
    # A dictionary stays as long as the chunk is read, other pages go one after the other.
    largest = {True: 0, False: 0}
    for page in read_pages(file, chunk):
        largest[page.is_dictionary] = max(largest[page.is_dictionary], page.bytes_to_read)
    return sum(largest.values())


def read_pages(file: BinaryIO, chunk: Chunk) -> Iterator[Page]:
    """Yield the pages of a column chunk, reading their headers only.

    Raises:
        ValueError: a header is damaged.
        OSError: the file cannot be read.
    """
    position = chunk.start
    end = position + chunk.num_bytes
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
    """Read a struct of Thrift's compact protocol; long texts and floating-point numbers are passed over."""
    if not depth:
        raise ValueError("a header is nested too deeply")
    fields: Fields = {}
    number = 0
    while True:
        [head] = _read(file, 1)
        if head == 0:
            return fields
        kind = head & 0x0F
        number = number + (head >> 4) if head >> 4 else _read_signed(file)
        # A field's kind is its truth; an item of a list has a byte of its own.
        value = 2 - kind if kind in (1, 2) else _read_value(file, kind, depth)
        if value is not None:
            fields[number] = value


def _read_value(file: BinaryIO, kind: int, depth: int) -> Any:
    """Read a value of one of the protocol's kinds; None where it is passed over."""
    if kind in (1, 2, 3):
        return _read(file, 1)[0]
    if kind in (4, 5, 6):
        return _read_signed(file)
    if kind == 7:
        _read(file, 8)
        return None
    if kind == 8:
        length = _read_varint(file)
        if length > MAX_TEXT_BYTES:
            raise ValueError(f"a header has a text of {length} bytes")
        if length <= MAX_NAME_BYTES:
            return _read(file, length)
        file.seek(length, os.SEEK_CUR)
        return None
    if kind in (9, 10):
        [head] = _read(file, 1)
        length = head >> 4 if head >> 4 < 15 else _read_varint(file)
        if length > MAX_ITEMS:
            raise ValueError(f"a header has a list of {length} items")
        items = [_read_value(file, head & 0x0F, depth) for _ in range(length)]
        return [item for item in items if item is not None]
    if kind == 12:
        return _read_struct(file, depth - 1)
    raise ValueError(f"a header has a field of kind {kind}, which none has")


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
    raise ValueError("a header has a number without end")


def _read(file: BinaryIO, num_bytes: int) -> bytes:
    data = file.read(num_bytes)
    if len(data) < num_bytes:
        raise ValueError("a header is cut off")
    return data
