"""Rows of a file are taken with a batch in memory."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdcache.teacher import verify_against_data
from kdcache.teacher.verify_against_data import take_rows


@pytest.mark.parametrize("rows", [[], [0], [3, 4, 5, 19], list(range(20))])
def test_rows_taken_from_a_file_are_those_of_the_table(tmp_path: Path, monkeypatch, rows):
    monkeypatch.setattr(verify_against_data, "ROW_GROUP_ROWS", 4)
    table = pa.table({"a": list(range(20)), "b": [f"text {k}" for k in range(20)]})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=6)
    found = take_rows(pq.ParquetFile(tmp_path / "x.parquet"), np.array(rows, np.int64))
    assert found.equals(table.take(pa.array(rows, pa.int64())))
