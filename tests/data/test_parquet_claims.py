"""What a Parquet footer claims is read without Arrow, which ends the process over some contradictions."""

import io
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzzing import read_apart

from kdcache.data.parquet_claims import NOT_WHOLE, find_impossible, read_claims
from kdcache.data.parsers import Layout
from kdcache.data.readers import read_rows
from kdcache.errors import DataError

TABLE = pa.table(
    {
        "text": ["a", "b", None, "c"] * 5,
        "number": pa.array(range(20), pa.int8()),
        "flag": [True, False] * 10,
        "vector": pa.array([[1.0, 2.0]] * 20, pa.list_(pa.float32(), 2)),
        "nested": [{"a": [1, 2], "b": {"c": "x"}}] * 20,
    }
)


def written(columns=TABLE.column_names, **options) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(TABLE.select(columns).replace_schema_metadata({"a": "b" * 300}), buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"row_group_size": 1},
        {"use_dictionary": False, "compression": "zstd", "write_page_checksum": True},
        {"write_statistics": False, "version": "1.0"},
        {"write_page_index": True, "store_decimal_as_integer": True},
        {"use_dictionary": False, "column_encoding": {"number": "DELTA_BINARY_PACKED"}},
    ],
)
def test_claims_are_those_that_arrow_reads(options):
    data = written(**options)
    claims, wanted = read_claims(io.BytesIO(data)), pq.ParquetFile(io.BytesIO(data)).metadata
    assert (claims.size, claims.rows, len(claims.groups)) == (
        len(data), wanted.num_rows, wanted.num_row_groups
    )  # fmt: skip
    for k, group in enumerate(claims.groups):
        theirs = wanted.row_group(k)
        assert (group.rows, len(group.columns)) == (theirs.num_rows, theirs.num_columns)
        for i, column in enumerate(group.columns):
            other = theirs.column(i)
            assert column.values == other.num_values
            assert column.inside == other.total_compressed_size
            assert column.outside == other.total_uncompressed_size
            assert set(column.encodings) == set(other.encodings)
            assert column.dictionary == other.has_dictionary_page
    assert find_impossible(claims) is None


def test_no_byte_of_a_footer_ends_the_process():
    """Arrow looks at the histograms of a column's sizes only when asked for the column, and then aborts."""
    data = written(use_dictionary=False, columns=["text", "number"])
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")

    def attempt(number: int) -> str:
        at = start + number
        changed = bytearray(data)
        changed[at] = random.Random(number).randrange(256)
        try:
            file = io.BytesIO(changed)
            table = pq.ParquetFile(file)
            if find_impossible(read_claims(file)):
                return "impossible"
            table.read()
        except NOT_WHOLE:
            return "refused"
        except BaseException as error:
            return repr(error)
        return "read"

    said = dict(read_apart(attempt, range(len(data) - start - 8)))
    assert set(said.values()) <= {"read", "refused", "impossible"}


def zigzag(value: int) -> bytes:
    value, out = value << 1 ^ (-1 if value < 0 else 0), bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


FOOTERS = {  # rows, then a list of no row groups
    "a field twice": b"\x36" + zigzag(5) + b"\x06" + zigzag(3) + zigzag(7) + b"\x19\x0c\x00",
    "a number that wraps around": b"\x06" + zigzag(2**16 + 3) + zigzag(5) + b"\x19\x0c\x00",
    "a number without an end": b"\x36" + b"\xff" * 30,
    "lists in lists": b"\x39" + b"\x19" * 5000,
    "many values that are not there": b"\x39\xf9" + b"\xff\xff\xff\xff\x0f",
    "rows that are a text": b"\x38\x01a\x19\x0c\x00",
    "nothing": b"",
}


@pytest.mark.parametrize("name", FOOTERS)
def test_claims_that_readers_may_see_in_two_ways_are_refused(name):
    inner = FOOTERS[name]
    with pytest.raises(pa.ArrowInvalid):
        read_claims(io.BytesIO(b"PAR1" + inner + len(inner).to_bytes(4, "little") + b"PAR1"))
    good = b"\x36" + zigzag(5) + b"\x19\x0c\x00"
    assert read_claims(io.BytesIO(good + len(good).to_bytes(4, "little") + b"PAR1")).rows == 5


def test_texts_and_names_that_are_not_utf_8_are_refused(tmp_path):
    data = written(columns=["text", "number"], use_dictionary=False, compression="none")
    for number, (old, new) in enumerate(((b"number", b"n\xffmber"), (b"\1\0\0\0a", b"\1\0\0\0\xff"))):
        path = tmp_path / f"{number}.parquet"
        path.write_bytes(data.replace(old, new))
        with pytest.raises(DataError, match=path.name):
            list(read_rows(path, Layout(), [], None))
