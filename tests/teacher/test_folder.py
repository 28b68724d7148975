"""The folder of a teacher: it knows by content which rows it was trained on, and the fold of each."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import fails, run

from kdcache.data.splits import build_table, content_hash, write_split
from kdcache.data.task import Example, Task, read_task, write_task
from kdcache.errors import DataError, ModelError
from kdcache.teacher.folder import FOLDS, describe_rows, read_folds, write_folds

TASK = Task("t", ("no", "yes"), "t/1", ("accuracy",))
ROWS = [Example(f"train-{i}", i % 2, str(i), f"text {i}") for i in range(6)]
DEALT = np.array([0, 1, 1, 0, 0, 1], np.int8)
DATA = Path("data/cb")


@pytest.fixture
def identity(tmp_path: Path) -> dict:
    train = build_table(ROWS, TASK)
    write_folds(train, DEALT, tmp_path)
    return {"labels": ["no", "yes"], "template": "t/1", **describe_rows(train, DEALT)}


def test_rows_in_another_order_keep_their_folds_where_ids_keep_their_texts(tmp_path, identity):
    order = [3, 1, 0, 5, 4, 2]
    train = build_table([ROWS[i] for i in order], TASK)
    assert read_folds(tmp_path, train, TASK, identity).tolist() == DEALT[order].tolist()


def test_some_of_the_rows_have_their_folds_where_all_rows_are_the_teachers(tmp_path, identity):
    some = build_table([ROWS[i] for i in (4, 1)], TASK)
    assert (
        read_folds(tmp_path, some, TASK, identity, identity["train_rows"]).tolist() == DEALT[[4, 1]].tolist()
    )
    for digest in (None, "0" * 64):
        with pytest.raises(DataError, match="Run: kdcache teach"):
            read_folds(tmp_path, some, TASK, identity, digest)
    stranger = build_table([replace(ROWS[0], example_id="train-9")], TASK)
    with pytest.raises(ModelError, match="Run: kdcache teach"):
        read_folds(tmp_path, stranger, TASK, identity, identity["train_rows"])


def swapped(rows: list[Example], a: int, b: int) -> list[Example]:
    """As a file whose rows changed places, where ids are the numbers of rows."""
    rows = list(rows)
    rows[a], rows[b] = (replace(rows[j], example_id=rows[i].example_id) for i, j in ((a, b), (b, a)))
    return rows


@pytest.mark.parametrize(
    ("rows", "task"),
    [
        (swapped(ROWS, 0, 2), TASK),  # of one label
        (swapped(ROWS, 1, 4), TASK),
        (ROWS[:-1], TASK),
        ([*ROWS, replace(ROWS[0], example_id="train-6")], TASK),
        ([replace(ROWS[0], text="another text"), *ROWS[1:]], TASK),
        ([replace(ROWS[0], label=1), *ROWS[1:]], TASK),
        ([replace(row, example_id=f"x-{i}") for i, row in enumerate(ROWS)], TASK),
        (ROWS, replace(TASK, template="t/2")),
        (ROWS, replace(TASK, labels=("yes", "no"))),
        (ROWS, replace(TASK, labels=("no", "yes", "maybe"))),
    ],
)
def test_rows_that_are_not_the_teachers_are_refused(tmp_path, identity, rows, task):
    with pytest.raises(DataError) as error:
        read_folds(tmp_path, build_table(rows, task), task, identity)
    assert str(error.value).endswith("Run: kdcache teach --task t")
    assert len(str(error.value).splitlines()) == 1


def other_folds(folder: Path) -> None:
    write_folds(build_table(ROWS, TASK), 1 - DEALT, folder)


def without_a_row(folder: Path) -> None:
    write_folds(build_table(ROWS[1:], TASK), DEALT[1:], folder)


def without_content(folder: Path) -> None:
    pq.write_table(pq.read_table(folder / FOLDS).drop_columns("content_hash"), folder / FOLDS)


@pytest.mark.parametrize(
    "damage",
    [
        other_folds, without_a_row, without_content, lambda folder: (folder / FOLDS).unlink(),
        lambda folder: (folder / FOLDS).write_bytes(b"PAR1"),
    ],
)  # fmt: skip
def test_folds_that_are_not_the_teachers_are_refused(tmp_path, identity, damage):
    damage(tmp_path)
    with pytest.raises(ModelError, match=r"folds\.parquet: .*Run: kdcache teach --task t"):
        read_folds(tmp_path, build_table(ROWS, TASK), TASK, identity)


def test_a_teacher_that_does_not_say_what_it_was_trained_on_is_refused(tmp_path, identity):
    del identity["train_rows"]
    with pytest.raises(DataError, match="Run: kdcache teach"):
        read_folds(tmp_path, build_table(ROWS, TASK), TASK, identity)


def with_column(table: pa.Table, name: str, values: list[str]) -> pa.Table:
    place = table.column_names.index(name)
    return table.set_column(place, table.schema.field(name), pa.array(values))


def other_template(task: Task, table: pa.Table) -> tuple[Task, pa.Table]:
    texts, pairs = table["text"].to_pylist(), table["text_pair"].to_pylist()
    hashes = [content_hash("cb/other", *row) for row in zip(texts, pairs, strict=True)]
    return replace(task, template="cb/other"), with_column(table, "content_hash", hashes)


def other_order(task: Task, table: pa.Table) -> tuple[Task, pa.Table]:
    ids = table["example_id"].to_pylist()
    return task, with_column(table.take(list(range(len(table)))[::-1]), "example_id", ids)


def other_labels(task: Task, table: pa.Table) -> tuple[Task, pa.Table]:
    return replace(task, labels=task.labels[::-1]), table


@pytest.mark.parametrize("change", [other_template, other_order, other_labels])
def test_the_stage_refuses_and_its_remedy_works(built_project, change: Callable):
    built_project("prepare --task cb", "teach --task cb")
    task, table = change(read_task(DATA, "cb"), pq.read_table(DATA / "train.parquet"))
    write_task(task, DATA)
    write_split([table], DATA / "train.parquet")
    assert fails("cache", "--task", "cb").endswith("Run: kdcache teach --task cb")
    if change is other_labels:
        assert run("teach", "--task", "cb")[0] == 0
        assert run("cache", "--task", "cb")[0] == 0
        known = json.loads(Path("cache/cb/manifest.json").read_text())["identity"]
        assert known["labels"] == list(task.labels)
