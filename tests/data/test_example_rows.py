"""Examples on disk are the examples that were put there, whichever of them are chosen."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import run

from kdcache.data.example_rows import TABLE_ROWS, ExampleRows
from kdcache.data.task import Example

COUNT = TABLE_ROWS + 50
EXAMPLES = [
    Example(
        f"train-{i}", i % 3, f"g{i // 2}", f"text {i // 4}", "ä" * (i % 2), ("x", str(i))[: i % 3], f"u{i}",
        "c", ("a",) * (i % 2),
    )
    for i in range(COUNT)
]  # fmt: skip


@pytest.fixture(params=[0, 2**60], ids=["on disk", "in memory"])
def rows(request, tmp_path, monkeypatch) -> ExampleRows:
    monkeypatch.setattr("kdcache.on_disk.SMALL", request.param)
    return ExampleRows.of(iter(EXAMPLES), tmp_path)


def test_rows_are_those_that_were_put_there(rows):
    assert len(rows) == COUNT
    assert rows == EXAMPLES
    assert [i for part in rows.column("example_id") for i in part] == [e.example_id for e in EXAMPLES]
    assert rows[-1] == EXAMPLES[-1]


def test_chosen_rows_of_chosen_rows(rows):
    first, second = (np.random.default_rng(seed).random(COUNT) < 0.5 for seed in (0, 1))
    some = rows.where(first).where(second[first])
    assert some == [e for e, a, b in zip(EXAMPLES, first, second, strict=True) if a and b]
    assert len(some) == (first & second).sum()
    bare = some.without_labels()
    assert {e.label for e in bare} == {label for part in bare.column("label") for label in part} == {-1}
    assert {e.label for e in some} == {0, 1, 2}
    assert [e.example_id for e in bare] == [e.example_id for e in some]


def test_a_text_that_stands_again_is_held_once(rows):
    texts = [e.text for e in rows]
    assert texts[0] is texts[1]
    assert texts[3] != texts[4]


def test_long_texts_come_fewer_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("kdcache.data.example_rows.TABLE_CHARACTERS", 100)
    some = [Example(f"train-{i}", 0, "", "x" * length) for i, length in enumerate((90, 90, 5, 300, 0))]
    found = ExampleRows.of(some, tmp_path)
    assert found == some
    assert [len(ids) for ids in found.column("example_id")] == [2, 2, 1]


def test_a_split_of_many_row_groups_holds_every_row(project, monkeypatch):
    project()

    def prepared() -> list:
        assert run("prepare", "--task", "cb")[0] == 0
        files = sorted(Path("data/cb").glob("*.parquet"))
        return [pq.read_table(file) for file in files]

    whole = prepared()
    monkeypatch.setattr("kdcache.data.prepare.GROUP_ROWS", 3)
    assert prepared() == whole
    assert pq.ParquetFile("data/cb/train.parquet").num_row_groups == -(-len(whole[0]) // 3)
