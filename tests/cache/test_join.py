"""Rows are joined by id whatever their order, and vectors on disk are found again."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from kdcache.cache.join import join_keys, name_chosen, pick
from kdcache.cache.spill import Spill


def table(ids, texts, labels):
    columns = {"example_id": pa.array(ids, pa.string()), "content_hash": pa.array(texts, pa.string())}
    return lambda: pa.table(columns | {"label": pa.array(labels, pa.int64())}).to_batches(max_chunksize=3)


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_the_join_is_that_of_two_dicts(seed, on_disk, tmp_path, monkeypatch):
    monkeypatch.setattr("kdcache.on_disk.SMALL", 0)
    for name in ("LOOKED_UP", "RELEASED"):
        monkeypatch.setattr(f"kdcache.cache.join.{name}", 2)
    rng = np.random.default_rng(seed)
    a, b = (
        {f"i{k}": (f"t{rng.integers(2)}", int(rng.integers(2))) for k in rng.permutation(12)[:n]}
        for n in (9, 7)
    )
    opened = [
        table(list(rows), [t for t, _ in rows.values()], [k for _, k in rows.values()]) for rows in (a, b)
    ]
    found = join_keys(*opened, tmp_path if on_disk else None)
    assert [list(b)[k] if k >= 0 else None for k in found.row] == [i if i in b else None for i in a]
    assert list(pick(opened[0], found.only_a)) == [i for i in a if i not in b]
    assert list(pick(opened[1], found.only_b)) == [i for i in b if i not in a]
    assert list(pick(opened[0], found.texts)) == [i for i in a if i in b and a[i][0] != b[i][0]]
    assert list(pick(opened[0], found.labels)) == [i for i in a if i in b and a[i][1] != b[i][1]]


def test_a_table_without_rows_joins_with_any():
    empty, some = table([], [], []), table(["a"], ["x"], [0])
    assert join_keys(some, empty).only_a.tolist() == [True]
    assert join_keys(empty, some).only_b.tolist() == [True]


def test_five_ids_are_named_and_the_others_counted():
    ids = [f"i{k}" for k in range(8)]
    assert name_chosen(table(ids, ids, range(8)), np.arange(8) > 0) == "i1, i2, i3, i4, i5 and 2 more"


def test_vectors_on_disk_are_found_in_any_order(tmp_path: Path):
    values = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    spill = Spill(tmp_path)
    for low, high in pairwise((0, 7, 8, 50)):
        spill.append(values[low:high])
    for rows in (
        np.arange(50),
        np.random.default_rng(1).permutation(50),
        np.array([3, 3, 49, 0]),
        np.arange(0),
    ):
        assert (spill.take(rows) == values[rows]).all()
    spill.close()
    assert not list(tmp_path.iterdir())
