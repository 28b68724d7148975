"""What the footer of a Parquet file claims, checked before a row is read."""

from collections.abc import Iterator
from typing import Any

import pyarrow.parquet as pq

MAX_RATIO = 1000  # zstd makes texts at most some 20 times smaller
ROWS_PER_BYTE = 100
SLACK = 2**20  # a small file may be of one repeated row


def find_impossible(metadata: pq.FileMetaData, size: int) -> str | None:
    """Say what a file of that size cannot hold; None where all may be true.

    Args:
        metadata: of the file.
        size: of the file, in bytes.
    """
    groups = [metadata.row_group(k) for k in range(metadata.num_row_groups)]
    rows = metadata.num_rows
    if rows < 0 or any(group.num_rows < 0 for group in groups) or rows != sum(g.num_rows for g in groups):
        return f"{rows} rows, and {', '.join(str(g.num_rows) for g in groups[:5]) or 'no'} in its row groups"
    if rows > ROWS_PER_BYTE * size:
        return f"{rows} rows in {size} bytes"
    for column in (column for group in groups for column in columns_of(group)):
        inside, outside = column.total_compressed_size, column.total_uncompressed_size
        if not (0 <= inside <= size and 0 <= outside <= max(SLACK, MAX_RATIO * inside)):
            return f"a column of {outside} bytes in {inside} of a file of {size}"
    return None


def columns_of(group: pq.RowGroupMetaData) -> Iterator[Any]:
    """Yield the metadata of each column of a row group."""
    return (group.column(k) for k in range(group.num_columns))
