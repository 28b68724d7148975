"""What is large lies in files without a name, holds what memory would hold, and is gone with its array."""

import errno
import gc
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdcache import on_disk
from kdcache.on_disk import Growing, empty, join_arrays, open_parquet, put_table, release

ROWS = 20_000


@pytest.fixture(params=[0, 2**60])
def small(request, monkeypatch) -> int:
    """All on disk, then all in memory."""
    monkeypatch.setattr(on_disk, "SMALL", request.param)
    return request.param


def test_arrays_hold_what_was_put_there(tmp_path, small):
    values = np.random.default_rng(0).normal(size=(ROWS, 3)).astype(np.float32)
    order = np.random.default_rng(1).permutation(ROWS)
    found, flat = empty(values.shape, values.dtype, tmp_path), Growing(np.float32, tmp_path)
    for part in np.split(order, 7 * np.arange(1, 9)):
        found[part] = values[part]
        flat.append(values[part])
        release()
    release()
    assert (found == values).all()
    assert (flat.whole().reshape(-1, 3) == values[order]).all()
    joined = join_arrays([found, found[:5], found[:0]], tmp_path)
    assert (joined == np.concatenate([values, values[:5]])).all()
    joined[0] = 1
    assert not (found[0] == 1).any()
    assert not list(tmp_path.iterdir())


def test_rows_are_read_some_at_a_time_where_arrays_are_on_disk(tmp_path, small, monkeypatch):
    values = empty((500, 3), np.float32, tmp_path)
    values[:] = np.arange(1500).reshape(500, 3)
    rows = np.random.default_rng(0).permutation(500)[:100]
    events: list[object] = []
    monkeypatch.setattr(on_disk, "release", lambda: events.append("released"))
    found = []
    for some in on_disk.pieces(rows):
        events.append(len(some))
        found.append(values[some])
    assert (np.concatenate(found) == values[rows]).all()
    if small == 0:
        assert max(events[::2]) <= on_disk.PIECE_ROWS
        assert events[1::2] == ["released"] * 7  # before the next
    assert [len(some) for some in on_disk.pieces(rows[:0])] == [0]


def test_nothing_is_an_array_too(tmp_path, small):
    assert empty((0, 3), np.float32, tmp_path).shape == (0, 3)
    assert empty((5, 0), np.float16, tmp_path).shape == (5, 0)
    assert Growing(np.int32, tmp_path).whole().shape == (0,)


def test_tables_hold_their_rows(tmp_path, small):
    schema = pa.schema([pa.field("id", pa.string(), nullable=False), ("answers", pa.list_(pa.string()))])
    whole = pa.table({"id": ["a", "ä", ""], "answers": [["x"], [], None]}, schema=schema)
    found = put_table(whole.to_batches(max_chunksize=2), schema, tmp_path)
    release()
    assert found.equals(whole)
    assert found.schema == schema
    assert put_table([], schema, tmp_path).num_rows == 0
    assert not list(tmp_path.iterdir())


def test_memory_holds_only_what_is_small(tmp_path, monkeypatch):
    """In bytes of memory that are still held, by NumPy, Python and Arrow."""
    rows = np.arange(8 * ROWS)
    batches = pa.table({"id": pa.array(map(str, rows))}).to_batches(max_chunksize=1000)
    held = {}
    for small in (rows.nbytes // 4, 2**60):
        monkeypatch.setattr(on_disk, "SMALL", small)
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes()
        growing = Growing(np.int64, tmp_path)
        growing.append(rows)
        kept = [
            growing.whole(),
            empty(rows.shape, rows.dtype, tmp_path),
            put_table(batches, batches[0].schema, tmp_path),
        ]
        held[small] = tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes() - before
        tracemalloc.stop()
        assert len(kept) == 3
    on, off = held.values()
    assert off > 2 * rows.nbytes
    assert on < rows.nbytes / 4


def test_no_row_of_a_parquet_file_is_held_but_those_being_read(tmp_path):
    path, rows = tmp_path / "some.parquet", 8 * ROWS
    digits = np.random.default_rng(0).bytes(32 * rows).hex()
    texts = pa.array([digits[start : start + 64] for start in range(0, len(digits), 64)])
    pq.write_table(pa.table({"text": texts}), path, row_group_size=1000)
    before, held, seen = pa.total_allocated_bytes(), [], 0
    file = open_parquet(path)
    for batch in file.iter_batches(1000):
        seen += len(batch)
        held.append(pa.total_allocated_bytes() - before)
    assert seen == rows
    assert max(held) < path.stat().st_size / 8


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system takes room only as it is written")
def test_a_full_disk_is_said_before_anything_is_written(tmp_path, monkeypatch):
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(on_disk, "SMALL", 0)
    with pytest.raises(OSError, match="space") as caught:
        empty((ROWS,), np.int64, tmp_path)
    assert Path(caught.value.filename) == tmp_path
