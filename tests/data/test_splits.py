"""Splits: folds keep groups together, digests see every change, bytes repeat."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import superglue_task

from kdcache.data import splits
from kdcache.data.splits import (
    assign_folds,
    build_table,
    choose_rows,
    count_rows,
    existing_splits,
    hold_out,
    read_split,
    rows_at,
    table_digest,
    write_split,
)
from kdcache.data.task import Example, Task
from kdcache.errors import DataError

WIC = superglue_task("wic")


def examples(count: int) -> list[Example]:
    return [Example(f"train-{i}", i % 2, f"g{i // 4}", f"text {i}", "pair") for i in range(count)]


def test_groups_stay_together_and_labels_are_spread():
    labels = [i % 2 for i in range(120)]
    groups = [f"g{i // 4}" for i in range(120)]
    folds = assign_folds(labels, groups, 3, seed=0)
    assert {*folds.tolist()} == {0, 1, 2}
    for group in set(groups):
        assert len({f for f, g in zip(folds, groups, strict=True) if g == group}) == 1
    for fold in range(3):
        assert 0.4 < np.mean(np.array(labels)[folds == fold]) < 0.6


def test_folds_repeat_for_a_seed_and_differ_between_seeds():
    labels, groups = [i % 2 for i in range(80)], [str(i) for i in range(80)]
    first = assign_folds(labels, groups, 4, seed=1)
    assert (first == assign_folds(labels, groups, 4, seed=1)).all()
    assert (first != assign_folds(labels, groups, 4, seed=2)).any()


@pytest.mark.parametrize("fraction", [0.001, 0.005, 0.1, 0.5])
def test_a_share_of_any_size_is_held_out(fraction):
    labels, groups = [i % 2 for i in range(2000)], [str(i) for i in range(2000)]
    assert hold_out(labels, groups, fraction, seed=0).sum() == pytest.approx(2000 * fraction, abs=2)


@pytest.mark.parametrize(
    ("classes", "rows", "fraction"), [(10, 19, 0.15), (60, 3, 0.2), (30, 4, 0.2), (900, 3, 0.2)]
)
def test_classes_smaller_than_the_folds_are_dealt_as_far_as_they_go(classes, rows, fraction):
    labels, groups = np.repeat(np.arange(classes), rows).tolist(), [str(i) for i in range(classes * rows)]
    held_out = np.bincount(np.array(labels)[hold_out(labels, groups, fraction, seed=0)], minlength=classes)
    assert held_out.sum() == pytest.approx(classes * rows * fraction, rel=0.1)
    assert held_out.max() - held_out.min() <= 1 + round(rows * fraction) // 2
    assert held_out.max() < rows


@pytest.mark.parametrize(("classes", "rows", "folds"), [(5, 1, 5), (2, 3, 5), (2, 12, 20)])
def test_no_fold_is_empty_however_few_rows_there_are(classes, rows, folds):
    labels, groups = np.repeat(np.arange(classes), rows).tolist(), [str(i) for i in range(classes * rows)]
    for seed in range(40):
        assert len(set(assign_folds(labels, groups, folds, seed).tolist())) == folds


def test_a_share_of_too_few_groups_is_refused_by_its_name():
    with pytest.raises(DataError, match=r"1/10 of train.* 10 groups of rows, got 2") as caught:
        hold_out([0, 1, 0, 1], ["a", "a", "b", "b"], 0.1, seed=0)
    assert "folds" not in str(caught.value)


def test_more_folds_than_groups_is_refused():
    with pytest.raises(DataError, match=r"at least as many groups as folds \(3\), got 2"):
        assign_folds([0, 1, 0, 1], ["a", "a", "b", "b"], 3, seed=0)


def test_kept_rows_depend_on_ids_and_seed_only():
    ids = np.array([row.example_id for row in examples(50)])
    kept = choose_rows(ids, 50, 10, seed=0)
    assert kept.sum() == 10
    assert set(ids[::-1][choose_rows(ids[::-1], 50, 10, seed=0)]) == set(ids[kept])
    assert (choose_rows(ids, 50, 10, seed=1) != kept).any()
    assert choose_rows(ids, 50, None, seed=0).all()


def test_kept_units_are_whole():
    rows = [
        Example(f"train-{q}-{a}", a % 2, str(q), "text", f"{q} {a}", unit=f"train-{q}")
        for q in range(20)
        for a in range(1 + q % 5)
    ]
    chosen = choose_rows([row.unit for row in rows], len(rows), 25, seed=0)
    kept = [row for row, own in zip(rows, chosen, strict=True) if own]
    assert 20 < len(kept) <= 25
    sizes = {unit: sum(row.unit == unit for row in rows) for unit in {row.unit for row in kept}}
    assert sizes == {unit: sum(row.unit == unit for row in kept) for unit in sizes}


def test_digest_ignores_order_and_sees_every_field():
    def digest(*columns: list) -> str:
        return table_digest(
            pa.table(dict(zip(("example_id", "content_hash", "label"), columns, strict=True)))
        )

    whole = (["a", "b"], ["x", "y"], [0, 1])
    assert digest(*whole) == digest(["b", "a"], ["y", "x"], [1, 0])
    changes = (["a", "c"], *whole[1:]), (whole[0], ["x", "z"], whole[2]), (*whole[:2], [0, 0])
    twice = (["a", "b", "b"], ["x", "y", "y"], [0, 1, 1])
    for changed in (*changes, twice, (["a"], ["x"], [0]), (["b", "a"], *whole[1:])):
        assert digest(*changed) != digest(*whole)


def test_split_round_trip_is_byte_identical(tmp_path):
    table = build_table(examples(20), WIC)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_split([table], tmp_path / name / "train.parquet")
    bytes_ = [(tmp_path / name / "train.parquet").read_bytes() for name in ("one", "two")]
    assert bytes_[0] == bytes_[1]
    assert read_split(tmp_path / "one", "train", WIC).equals(table)
    assert existing_splits(tmp_path / "one", WIC) == ["train"]


def test_content_hash_depends_on_the_template():
    wic, cb = (build_table(examples(1), superglue_task(name)) for name in ("wic", "cb"))
    assert table_digest(wic) != table_digest(cb)


def test_missing_split_names_the_command(tmp_path):
    with pytest.raises(DataError, match="Run: kdcache prepare --task wic"):
        read_split(tmp_path, "train", WIC)


def test_rows_of_a_file_are_read_in_the_order_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(splits, "GROUP_ROWS", 3)
    examples = [Example(f"train-{i}", i % 2, f"g{i}", f"text {i}") for i in range(10)]
    task = Task("t", ("no", "yes"), "t/1", ("accuracy",))
    table = build_table(examples, task)
    write_split([table], tmp_path / "train.parquet")
    file = pq.ParquetFile(tmp_path / "train.parquet")
    assert file.num_row_groups == 4
    assert count_rows(file) == count_rows(table) == 10
    for rows in ([7, 0, 8, 2], [4, 4], [], list(range(10))):
        for source in (file, table):
            assert rows_at(source, np.array(rows, int)).equals(table.take(pa.array(rows, pa.int64())))
            assert rows_at(source, np.array(rows, int), ["group", "label"]).equals(
                table.take(pa.array(rows, pa.int64())).select(["group", "label"])
            )
