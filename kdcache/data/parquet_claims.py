"""What the footer of a Parquet file claims, checked before a row is read.

The footer is parsed here: Arrow ends the process where the metadata of a column contradict each other.
Format: https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift, in Thrift's
compact protocol.
"""

import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa

# What Arrow raises over a file that is not whole; the last one over texts and names of columns.
NOT_WHOLE = (pa.ArrowException, OSError, UnicodeDecodeError)
MAX_RATIO = 1000  # zstd makes texts at most some 20 times smaller
ROWS_PER_BYTE = 100
SLACK = 2**20  # a small file may be of one repeated row
TAIL = 8  # bytes: the footer's length and the format's name
MAX_LEVELS = 20  # of structs and lists
ENCODINGS = {
    0: "PLAIN", 2: "PLAIN_DICTIONARY", 3: "RLE", 4: "BIT_PACKED", 5: "DELTA_BINARY_PACKED",
    6: "DELTA_LENGTH_BYTE_ARRAY", 7: "DELTA_BYTE_ARRAY", 8: "RLE_DICTIONARY", 9: "BYTE_STREAM_SPLIT",
}  # fmt: skip
_BOOLS, _NUMBERS, _DOUBLE, _TEXT, _LISTS, _MAP, _STRUCT, _UUID = (
    (1, 2), (3, 4, 5, 6), 7, 8, (9, 10), 11, 12, 13
)  # fmt: skip


@dataclass(frozen=True)
class ChunkClaims:
    """What a footer says of one column of a row group.

    Args:
        values: how many.
        inside, outside: bytes in the file, and once unpacked.
        encodings: by their names in the format.
        dictionary: whether there is a page of one.
    """

    values: int
    inside: int
    outside: int
    encodings: tuple[str, ...]
    dictionary: bool


@dataclass(frozen=True)
class GroupClaims:
    """What a footer says of a row group."""

    rows: int
    columns: tuple[ChunkClaims, ...]


@dataclass(frozen=True)
class FooterClaims:
    """What a footer says of a file.

    Args:
        size: of the file, in bytes.
        rows: in all.
        groups: of rows.
    """

    size: int
    rows: int
    groups: tuple[GroupClaims, ...]


def read_claims(file: "BinaryIO | pa.NativeFile") -> FooterClaims:
    """Read the footer of a Parquet file that Arrow has opened.

    Raises:
        pa.ArrowInvalid: it cannot be read.
    """
    size = file.seek(0, 2)
    file.seek(max(0, size - TAIL))
    length = int.from_bytes(file.read(4), "little")
    file.seek(max(0, size - TAIL - length))
    try:
        found = _Compact(file.read(length)).struct()
        groups = tuple(
            GroupClaims(_int(group[3]), tuple(_chunk(column[3]) for column in group[1])) for group in found[4]
        )
        return FooterClaims(size, _int(found[3]), groups)
    except (IndexError, KeyError, TypeError, ValueError, struct.error):
        raise pa.ArrowInvalid("a footer that is no footer of the format") from None


def _chunk(said: dict[int, Any]) -> ChunkClaims:
    names = tuple(ENCODINGS.get(number, f"number {number}") for number in said[2])
    return ChunkClaims(_int(said[5]), _int(said[7]), _int(said[6]), names, 11 in said)


def _int(value: Any) -> int:
    if not isinstance(value, int):
        raise TypeError(value)
    return value


def find_impossible(claims: FooterClaims) -> str | None:
    """Say what a file of that size cannot hold; None where all may be true."""
    groups, rows, size = claims.groups, claims.rows, claims.size
    if rows < 0 or any(group.rows < 0 for group in groups) or rows != sum(group.rows for group in groups):
        return f"{rows} rows, and {', '.join(str(g.rows) for g in groups[:5]) or 'no'} in its row groups"
    if rows > ROWS_PER_BYTE * size:
        return f"{rows} rows in {size} bytes"
    for column in (column for group in groups for column in group.columns):
        inside, outside = column.inside, column.outside
        if not (0 <= inside <= size and 0 <= outside <= max(SLACK, MAX_RATIO * inside)):
            return f"a column of {outside} bytes in {inside} of a file of {size}"
    return None


class _Compact:
    """A reader of Thrift's compact protocol.

    Args:
        data: what is read, from its start.
    """

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def varint(self) -> int:
        value = shift = 0
        while (part := self.byte()) & 0x80:
            value |= (part & 0x7F) << shift
            shift += 7
            if shift > 63:
                raise ValueError("a number of more than 64 bits")
        return value | part << shift

    def number(self) -> int:
        value = self.varint() % 2**64
        return (value >> 1) ^ -(value & 1)

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Read fields by their numbers; one that is there twice would count for some readers only."""
        found: dict[int, Any] = {}
        last = 0
        while head := self.byte():
            last = last + (head >> 4) if head >> 4 else self.number()
            if last in found or not 0 < last < 2**15:
                raise ValueError(f"field {last}")
            found[last] = self.value(head & 15, depth)
        return found

    def value(self, kind: int, depth: int) -> Any:
        """Read a value; of texts, doubles and what no claim is made of, only pass over it."""
        if kind in _NUMBERS:
            return self.number() if kind > 3 else self.byte()
        if kind == _TEXT:
            self.skip(self.varint())
        elif kind == _STRUCT and depth < MAX_LEVELS:
            return self.struct(depth + 1)
        elif kind in _LISTS and depth < MAX_LEVELS:
            head = self.byte()
            count = head >> 4 if head >> 4 < 15 else self.varint()
            inner = head & 15
            if inner in _BOOLS:
                self.skip(count)
                return [None] * min(count, 1)
            return [self.value(inner, depth + 1) for _ in range(count)]
        elif kind == _MAP and depth < MAX_LEVELS:
            if count := self.varint():
                kinds = self.byte()
                for _ in range(count):
                    self.value(kinds >> 4, depth + 1)
                    self.value(kinds & 15, depth + 1)
        elif kind in (_DOUBLE, _UUID):
            self.skip(8 if kind == _DOUBLE else 16)
        elif kind not in _BOOLS:
            raise ValueError(f"a value of kind {kind}")
        return None

    def skip(self, count: int) -> None:
        self.at += count
        if self.at > len(self.data):
            raise IndexError(count)
