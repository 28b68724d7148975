"""The task in the data folder: what prepare wrote is what later stages read."""

import pytest
from conftest import superglue_task

from kdcache.data.task import Task, read_task, write_task
from kdcache.digests import seal
from kdcache.errors import DataError


@pytest.mark.parametrize("name", ["wic", "rte"])
def test_task_round_trips_to_the_same_bytes(name, tmp_path):
    task = superglue_task(name)
    write_task(task, tmp_path)
    first = (tmp_path / "task.json").read_bytes()
    assert read_task(tmp_path, name) == task
    write_task(read_task(tmp_path, name), tmp_path)
    assert (tmp_path / "task.json").read_bytes() == first


def test_missing_or_foreign_task_names_the_command(tmp_path):
    with pytest.raises(DataError, match=r"task.json: .* not prepared. Run: .* --task wic$"):
        read_task(tmp_path, "wic")
    for text in ("{", "[]", '{"name": "wic"}'):
        (tmp_path / "task.json").write_text(text)
        seal(tmp_path / "task.json")
        with pytest.raises(DataError, match=r"not a task of this version of kdcache. .* --task wic$"):
            read_task(tmp_path, "wic")


def test_head_gives_one_logit_per_sequence_where_the_classes_are_sequences():
    task = Task("copa", ("choice1", "choice2"), "copa/1", ("accuracy",), num_choices=2)
    assert (task.num_labels, task.num_outputs) == (2, 1)
    assert superglue_task("cb").num_outputs == 3
